"""A vLLM that is none: a copy of a policy behind the backend protocol, which can die, keep old weights, and be a bit off."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vantage.policy import Policy
from vantage.rollout.engine import Request, Sampling
from vantage.rollout.fingerprint import fingerprint
from vantage.rollout.handover import probe_logp
from vantage.rollout.transformers_engine import TransformersEngine
from vantage.rollout.vllm_backend import Answer, BackendDied


@dataclass
class Faults:
    """What goes wrong: calls by number from 0, of all that the backend was asked."""

    dies_at: set[int] = field(default_factory=set)
    keeps_weights: bool = False
    """New weights are fingerprinted as they arrive, and then forgotten."""
    says_resident: bool = True
    """Whether it tells what it computes with."""
    misreads: bool = False
    off: float = 0.0
    """Added to every log-prob that it samples with."""


class CopyBackend:
    """Samples with the transformers engine from weights that reached it through a folder, and nothing else."""

    where = "a copy"
    elsewhere = False

    def __init__(self, policy: Policy, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        model = copy.deepcopy(policy.model).float()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        self.policy = Policy(model, policy.tokenizer, temperature=policy.temperature)
        self.calls: list[str] = []
        self.asks = 0
        self.arrived = ""

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) - 1 in self.faults.dies_at:
            raise BackendDied("it fell over")

    def complete(self, asks, sampling: Sampling, end_ids) -> list[Answer]:
        self._called("complete")
        self.asks += len(asks)
        engine = TransformersEngine(self.policy, end_ids)
        bare = Sampling(sampling.max_new_tokens, sampling.temperature, sampling.top_p, sampling.top_k)
        requests = [Request(list(a.ids), (a.seed,), max_new_tokens=a.limit) for a in asks]
        found = [rollouts[0] for rollouts in engine.generate(requests, bare)]
        return [Answer(r.response_ids, [x + self.faults.off for x in r.logp], r.finish_reason) for r in found]

    def score(self, sequences):
        self._called("score")
        return probe_logp(self.policy, sequences).tolist()

    def load(self, folder: Path) -> list[dict[str, Any]]:
        self._called("load")
        weights: dict[str, torch.Tensor] = {}
        for file in sorted(folder.glob("*.safetensors")):
            weights |= load_file(file)
        self.arrived = fingerprint(weights.values()) if not self.faults.misreads else "0" * 16
        if not self.faults.keeps_weights:
            self.policy.model.load_state_dict(weights, strict=False)
            self.policy.model.tie_weights()
        return self.state()

    def state(self) -> list[dict[str, Any]]:
        resident = fingerprint(self.policy.model.parameters()) if self.faults.says_resident else None
        return [{"arrived": self.arrived, "resident": resident, "updates": len(self.calls)}]

    def sleep(self) -> None:
        self._called("sleep")

    def close(self) -> None:
        self.calls.append("close")
        with torch.no_grad():
            for parameter in self.policy.model.parameters():
                parameter.zero_()
