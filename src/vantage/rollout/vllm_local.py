"""vLLM in process: an engine of this trainer's own, beside it on the same device, asleep while the policy trains."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vantage.errors import UserError
from vantage.models.holding import is_adapted
from vantage.plugins import one_line
from vantage.policy import Policy
from vantage.rollout.engine import Sampling
from vantage.rollout.options import VllmOptions
from vantage.rollout.vllm_backend import Answer, Ask, BackendDied, finished, parameters
from vantage.rollout.vllm_worker import EXTENSION, keep_plain_weights

INSTALL = "pip install 'vantage-rl[vllm]'"
LAUNCHER = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
"""What a launcher tells the processes of the trainer; vLLM must not take it for its own."""
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
CPU_BATCH_TOKENS = 4096
CPU_CACHE_BYTES = (1 << 28, 1 << 32)
"""Smallest and largest cache of keys and values on a CPU, where vLLM would take a share of all memory."""


def require_vllm() -> None:
    """Raise `UserError` where vLLM is not installed; it is not imported."""
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise UserError(f"--engine vllm needs the package vllm: {INSTALL}; or give --vllm.url of a server")


class LocalVllm:
    """A `vllm.LLM` whose workers run in a process of their own; it starts with meaningless weights at the first call."""

    where = "vLLM in process"
    elsewhere = False

    def __init__(self, policy: Policy, options: VllmOptions, dtype: torch.dtype, most: int) -> None:
        require_vllm()
        self.policy, self.options, self.dtype, self.most = policy, options, dtype, most
        self._llm: Any = None
        self._asleep = False
        self._watched = False
        self._end: Any = None

    # --- life -----------------------------------------------------------------------------------------------------------

    def _engine(self) -> Any:
        if self._llm is None:
            self._start()
        elif self._asleep:
            with self._alive():
                self._llm.wake_up()
            self._asleep = False
        return self._llm

    def _start(self) -> None:
        device, options = self.policy.device, self.options
        folder = tempfile.mkdtemp(prefix="vantage-vllm-")
        self._save_model_card(Path(folder))
        settings: dict[str, Any] = {
            "dtype": str(self.dtype).removeprefix("torch."),
            "tensor_parallel_size": options.tensor_parallel_size,
            "gpu_memory_utilization": options.gpu_memory_utilization,
            "max_model_len": options.max_model_len,
            "max_num_seqs": self.most,
            "enforce_eager": options.enforce_eager or device.type == "cpu",
            "enable_sleep_mode": self._sleeps,
            "enable_prefix_caching": True,
            "logprobs_mode": "processed_logprobs",
            "load_format": "dummy",
            "worker_extension_cls": EXTENSION,
        }
        if device.type == "cpu":
            settings |= self._on_a_cpu()
        try:
            with _environment(device):
                from vllm import LLM

                keep_plain_weights()  # vLLM's worker may run in this process (VLLM_ENABLE_V1_MULTIPROCESSING=0)
                self._llm = LLM(folder, **settings)
        except Exception as error:
            raise UserError(f"--engine vllm: it does not start: {one_line(error)}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._asleep = self._watched = False
        self._end = weakref.finalize(self, _end, self._llm)

    def _save_model_card(self, folder: Path) -> None:
        """All that vLLM reads of a model but its weights, which it is given like every later ones."""
        network: Any = self.policy.model
        base = network.get_base_model() if is_adapted(network) else network
        base.config.save_pretrained(folder)
        if getattr(base, "generation_config", None) is not None:
            base.generation_config.save_pretrained(folder)
        self.policy.tokenizer.save_pretrained(folder)

    def _on_a_cpu(self) -> dict[str, Any]:
        """Prompts are taken whole: vLLM (0.32) dies there of a seeded request whose prompt is cut in two."""
        config = self.policy.text_config
        length = int(self.options.max_model_len or getattr(config, "max_position_embeddings", None) or 2048)
        found = {"enable_chunked_prefill": False, "max_num_batched_tokens": max(length, CPU_BATCH_TOKENS)}
        if "VLLM_CPU_KVCACHE_SPACE" in os.environ:
            return found
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        wanted = 2 * self.policy.num_layers * heads * width * self.dtype.itemsize * length * self.most
        return found | {"kv_cache_memory_bytes": int(min(max(wanted, CPU_CACHE_BYTES[0]), CPU_CACHE_BYTES[1]))}

    @property
    def _sleeps(self) -> bool:
        return self.options.enable_sleep_mode and self.policy.device.type == "cuda"

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        """What vLLM raises when its process has died is `BackendDied`; the rest of it is thrown away."""
        try:
            yield
        except Exception as error:
            if type(error).__name__ not in ("EngineDeadError", "EngineGenerateError"):
                raise
            self.close()
            raise BackendDied("its process has died") from error

    def sleep(self) -> None:
        """See `Backend`. Weights go to the CPU's memory, the cache is dropped."""
        if self._llm is not None and self._sleeps and not self._asleep:
            with self._alive():
                self._llm.sleep(level=1)
            self._asleep = True

    def close(self) -> None:
        """See `Backend`."""
        if self._end is not None:
            self._end()
        self._llm, self._end, self._asleep = None, None, False

    # --- work -----------------------------------------------------------------------------------------------------------

    def complete(self, asks: Sequence[Ask], sampling: Sampling, end_ids: Sequence[int]) -> list[Answer]:
        """See `Backend`."""
        from vllm import SamplingParams

        engine = self._engine()
        if sampling.temperature > 0 and (sampling.top_p < 1 or sampling.top_k > 0):
            self._watch_sampling()
        prompts = [{"prompt_token_ids": ask.ids} for ask in asks]
        each = [SamplingParams(**parameters(ask, sampling, end_ids)) for ask in asks]
        with self._alive(), _refusals():
            found = engine.generate(prompts, each, use_tqdm=False)
        return [_answer(request.outputs[0]) for request in found]

    def _watch_sampling(self) -> None:
        if not self._watched:
            with self._alive():
                states = self._llm.collective_rpc("vantage_watch_sampling")
            if not all(state["watched"] for state in states):
                raise UserError(
                    "--top-p, --top-k: this vLLM has no log-probs before them; set VLLM_USE_V2_MODEL_RUNNER=0, or "
                    "give --engine transformers"
                )
            self._watched = True

    def score(self, sequences: Sequence[list[int]]) -> list[list[float]]:
        """See `Backend`."""
        from vllm import SamplingParams

        engine = self._engine()
        asked = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        with self._alive(), _refusals():
            found = engine.generate([{"prompt_token_ids": ids} for ids in sequences], asked, use_tqdm=False)
        return [
            [float(row[token].logprob) for row, token in zip(request.prompt_logprobs[1:], ids[1:])]
            for request, ids in zip(found, sequences)
        ]

    def load(self, folder: Path) -> list[dict[str, Any]]:
        """See `Backend`."""
        engine = self._engine()
        with self._alive():
            states: list[dict[str, Any]] = engine.collective_rpc("vantage_load", args=(str(folder),))
            if not engine.reset_prefix_cache():
                raise UserError("--engine vllm: it keeps cached states of old weights while nothing runs")
        return states

    def state(self) -> list[dict[str, Any]]:
        """See `Backend`."""
        engine = self._engine()
        with self._alive():
            found: list[dict[str, Any]] = engine.collective_rpc("vantage_state")
        return found


def _answer(output: Any) -> Answer:
    ids = list(output.token_ids)
    logp = [float(row[token].logprob) for row, token in zip(output.logprobs, ids)]
    return Answer(ids, logp, finished(output.finish_reason))


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """A request that vLLM refuses is a mistake of the settings, in one line."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"--engine vllm: {one_line(error)}; see --vllm.max-model-len") from error


@contextlib.contextmanager
def _environment(device: torch.device) -> Iterator[None]:
    """Variables under which vLLM's process starts: this process's device only, none of the launcher's, few words."""
    wanted: dict[str, str | None] = dict.fromkeys(LAUNCHER)
    wanted |= {name: value for name, value in QUIET.items() if name not in os.environ}
    if device.type == "cuda" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
        wanted["CUDA_VISIBLE_DEVICES"] = names[device.index or 0]
    before = {name: os.environ.get(name) for name in wanted}
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _end(llm: Any) -> None:
    """End vLLM's process; what it says while it goes is of no interest."""
    with contextlib.suppress(Exception):
        llm.llm_engine.engine_core.shutdown()
    sys.stderr.flush()
