"""What runs inside vLLM's workers: weights are taken over from a folder, and what is then there is fingerprinted.

vLLM mixes this class into its worker (`--worker-extension-cls vantage.rollout.vllm_worker.VantageWorker`); the methods are
called by name through `collective_rpc`. Nothing here imports vLLM.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vantage.rollout.fingerprint import fingerprint

EXTENSION = "vantage.rollout.vllm_worker.VantageWorker"
"""What vLLM's `worker_extension_cls` takes."""


class VantageWorker:
    """Methods of every worker of an engine that Vantage updates; `self` is vLLM's worker."""

    model_runner: Any
    parallel_config: Any
    device: torch.device
    vantage_arrived = ""
    vantage_updates = 0

    def vantage_load(self, folder: str) -> dict[str, Any]:
        """Take over the weights in a folder's safetensors; returns `vantage_state`."""
        found: list[str] = []
        weights = _read(Path(folder), self.device, found)
        if self.device.type == "cpu":
            self.model_runner.get_model().load_weights(weights)
        else:
            self.model_runner.reload_weights(weights_iterator=weights)
        self.vantage_arrived = combined(found)
        self.vantage_updates += 1
        return self.vantage_state()

    def vantage_state(self) -> dict[str, Any]:
        """Fingerprints of what arrived last and of what the model computes with; the latter None where it is not to be had.

        It is not where kernels keep weights in a form of their own (the parameter is empty then), and where several workers
        share the model.
        """
        parameters = [p.data for p in self.model_runner.get_model().parameters()]
        whole = all(p.numel() > 0 for p in parameters) and self.parallel_config.world_size == 1
        return {
            "arrived": self.vantage_arrived,
            "resident": fingerprint(parameters) if whole else None,
            "updates": self.vantage_updates,
        }

    def vantage_watch_sampling(self) -> dict[str, Any]:
        """Make log-probs those after temperature and before top-p and top-k, for which vLLM has no mode of its own."""
        sampler = getattr(self.model_runner, "sampler", None)
        inner = getattr(sampler, "topk_topp_sampler", None)
        if inner is None:
            return {"watched": False}
        if not isinstance(inner, BeforeTruncation):
            inner.logprobs_mode = "raw_logprobs"  # it need not make log-probs itself
            sampler.topk_topp_sampler = BeforeTruncation(inner)  # type: ignore[union-attr]
        return {"watched": True}


class BeforeTruncation(torch.nn.Module):
    """vLLM's sampler behind the temperature, with the log-probs of the logits that it is given."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, logits: Tensor, generators: Any, k: Tensor | None, p: Tensor | None) -> tuple[Tensor, Tensor]:
        """Token ids, and log-probs over the vocabulary [N, V]."""
        logp = logits.log_softmax(-1, dtype=torch.float32)  # before: sampling may write into the logits
        return self.inner(logits, generators, k, p)[0], logp


def combined(parts: list[str]) -> str:
    """The fingerprint of all tensors from those of each."""
    return f"{sum(int(part, 16) for part in parts) % (1 << 64):016x}"


def _read(folder: Path, device: torch.device, found: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of all files, each fingerprinted as it was read."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                tensor = opened.get_tensor(name).to(device)
                found.append(fingerprint([tensor]))
                yield name, tensor


def keep_plain_weights() -> None:
    """On a CPU, let vLLM compute with the weights as they are.

    It would pack them for oneDNN when it starts, and (0.32) leaves the packed head of a model with tied embeddings as it was
    when weights are loaded again: rollouts of the wrong policy, without a word.
    """
    if "vllm" not in sys.modules:
        return
    platforms = importlib.import_module("vllm.platforms")
    if platforms.current_platform.is_cpu():
        importlib.import_module("vllm._custom_ops")._supports_onednn = False  # type: ignore[attr-defined]


keep_plain_weights()  # vLLM imports this module in the worker, before the model is made
