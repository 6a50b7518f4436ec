"""Does a model with these settings fit? An estimate of the memory that training takes, before any weight is loaded.

All numbers are bytes. The model is built on the meta device from its configuration alone, and the parts of a step are run
there (`vantage.memory_trace`), so the count holds for any architecture that transformers knows. What lives in a step:

    resident  weights + optimizer (two float32 moments, or 8-bit ones; a float32 master copy where weights are bf16)
              + frozen reference + critic (its weights and optimizer)
    rollout   resident + prefill, or key-value cache, logits and the sampler's tensors at the last token
    update    resident + gradients + activations of one micro-batch and its logit chunk
    step      resident + gradients + what the optimizer needs while it works
    saving    resident + a copy of the optimizer's moments, where the model lives in the memory of the host

The peak is the largest of the last four. What an allocator wastes, and what Python and libraries hold, is not in it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vantage.lazy import torch
from vantage.plugins import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from vantage.config import TrainConfig

FLOAT32, BFLOAT16 = 4, 2
MOMENT_BYTES = {"adamw": 2 * FLOAT32, "adamw8bit": 2}
"""AdamW's two moments, for each parameter."""


@dataclass(frozen=True)
class Settings:
    """What of a configuration memory depends on."""

    prompt_tokens: int
    """Longest prompt."""
    new_tokens: int
    """Longest response."""
    microbatch_tokens: int
    """Padded tokens in a forward pass; one rollout at least."""
    generation_rows: int
    """Rollouts that are decoded side by side."""
    rollouts_per_prompt: int = 1
    chunk_tokens: int = 0
    """Tokens whose logits exist at once; 0: as `vantage.policy` chooses."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of weights, gradients, activations and cache; `bfloat16` has a float32 master copy in the optimizer."""
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    checkpointing: bool = False
    """Whether a decoder block's activations are computed again in the backward pass."""
    reference: bool = False
    """Whether there is a frozen reference of the policy's size."""
    critic: bool = False
    """Whether there is a critic of the policy's size."""
    on_cpu: bool = False
    """Whether the model lives where checkpoints are made."""
    top_p: float = 1.0
    top_k: int = 0

    @property
    def rollout_tokens(self) -> int:
        """Length of the longest rollout, prompt included."""
        return self.prompt_tokens + self.new_tokens

    @property
    def rows(self) -> int:
        """Longest rollouts in a micro-batch."""
        return max(1, self.microbatch_tokens // self.rollout_tokens)

    @staticmethod
    def of(config: TrainConfig, prompt_tokens: int, **more: Any) -> Settings:
        """From a resolved configuration; `more` are settings that it has no field for."""
        return Settings(
            prompt_tokens=prompt_tokens,
            new_tokens=config.max_new_tokens or 512,
            microbatch_tokens=config.tokens_per_microbatch or 4096,
            generation_rows=min(config.generation_batch, config.prompts * config.group_size),
            rollouts_per_prompt=config.group_size,
            chunk_tokens=config.logit_chunk_tokens,
            checkpointing=config.gradient_checkpointing,
            reference=config.kl_coef > 0 or config.algo.compares,
            top_p=config.top_p,
            top_k=config.top_k,
            **more,
        )


@dataclass(frozen=True)
class Estimate:
    """Bytes, part by part."""

    parameters: int
    """Their number, not bytes."""
    weights: int
    gradients: int
    optimizer: int
    """Moments, and the master copy where there is one."""
    reference: int
    critic: int
    """Weights and optimizer of a critic; its gradients live when the policy's do not."""
    activations: int
    """Largest need of a forward and backward pass over one micro-batch, logit chunk included."""
    optimizer_work: int
    """What the optimizer needs while it works."""
    rollout: int
    """Largest need of generation."""
    cache: int
    """The key-value cache's part of `rollout`."""
    saving: int
    """What a checkpoint copies before it writes."""

    @property
    def resident(self) -> int:
        """What stays through a whole step."""
        return self.weights + self.optimizer + self.reference + self.critic

    @property
    def phases(self) -> dict[str, int]:
        """The need of each phase of a step."""
        update = self.resident + self.gradients
        return {
            "rollout": self.resident + self.rollout,
            "update": update + self.activations,
            "optimizer step": update + self.optimizer_work,
            "checkpoint": self.resident + self.saving,
        }

    @property
    def peak(self) -> int:
        """The largest of the phases."""
        return max(self.phases.values())


def parameter_bytes(parameters: int, precision: str) -> int:
    """Weights, or gradients, of so many parameters."""
    return parameters * (BFLOAT16 if precision == "bfloat16" else FLOAT32)


def optimizer_bytes(parameters: int, optimizer: str, precision: str) -> int:
    """AdamW's moments, and a float32 master copy where the weights have fewer bits."""
    return parameters * (MOMENT_BYTES[optimizer] + (FLOAT32 if precision == "bfloat16" else 0))


def optimizer_work_bytes(parameters: int) -> int:
    """AdamW over lists of tensors holds the root of all second moments at once, in float32."""
    return parameters * FLOAT32


def cache_bytes(layers: int, kv_heads: int, head_dim: int, tokens: int, precision: str) -> int:
    """Keys and values of so many tokens (rows × length), in every layer."""
    return parameter_bytes(2 * layers * kv_heads * head_dim * tokens, precision)


class Estimator:
    """Estimates of one model under different settings; what a change leaves as it was is not run again."""

    def __init__(self, model_config: Any) -> None:
        self.model_config = model_config
        self._known: dict[tuple[Any, ...], Any] = {}

    def __call__(self, settings: Settings) -> Estimate:
        """See `estimate`."""
        try:
            count, activations, (rollout, cache) = self._parts(settings)
        except (RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
            name = getattr(self.model_config, "model_type", type(self.model_config).__name__)
            raise ValueError(f"the memory of a {name} model can not be estimated: {one_line(error)}") from error
        weights = parameter_bytes(count, settings.precision)
        states = optimizer_bytes(count, settings.optimizer, settings.precision)
        return Estimate(
            parameters=count,
            weights=weights,
            gradients=weights,
            optimizer=states,
            reference=weights if settings.reference else 0,
            critic=weights + states if settings.critic else 0,
            activations=activations,
            optimizer_work=optimizer_work_bytes(count),
            rollout=rollout,
            cache=cache,
            saving=count * MOMENT_BYTES[settings.optimizer] if settings.on_cpu else 0,
        )

    def _parts(self, settings: Settings) -> tuple[int, int, tuple[int, int]]:
        """Parameters, bytes of the update, bytes of generation and of its cache."""
        from vantage.memory_model import ShapePolicy

        kind, lengths = settings.precision, (settings.prompt_tokens, settings.new_tokens)
        policy = self._once(("model", kind), lambda: ShapePolicy(self.model_config, kind))
        update = ("update", kind, *lengths, settings.rows, settings.chunk_tokens, settings.checkpointing)
        rollout = ("rollout", kind, *lengths, settings.generation_rows, settings.rollouts_per_prompt, settings.top_p,
                   settings.top_k)  # fmt: skip
        return (
            policy.parameters,
            self._once(update, lambda: policy.update_bytes(settings)),
            self._once(rollout, lambda: policy.rollout_bytes(settings)),
        )

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


def estimate(model_config: Any, settings: Settings) -> Estimate:
    """What training a model of this transformers configuration takes.

    Raises:
        ValueError: the architecture can not be run without data (what it does depends on values of tensors).
    """
    return Estimator(model_config)(settings)


@dataclass(frozen=True)
class Change:
    """A setting that makes it fit."""

    flag: str
    settings: Settings


def changes(settings: Settings, available: frozenset[str]) -> list[list[Change]]:
    """What can be changed, what costs least first; each list goes from mild to strong.

    `available` are the fields of the configuration: a flag that there is not is not proposed.
    """
    smaller = [
        Change(f"--tokens-per-microbatch {tokens}", dataclasses.replace(settings, microbatch_tokens=tokens))
        for tokens in (rows * settings.rollout_tokens for rows in _halves(settings.rows))
    ]
    fewer = [
        Change(f"--generation-batch {rows}", dataclasses.replace(settings, generation_rows=rows))
        for rows in _halves(settings.generation_rows)
    ]
    found = [("tokens_per_microbatch", smaller), ("generation_batch", fewer)]
    for name, flag, change in (
        ("gradient_checkpointing", "--gradient-checkpointing", {"checkpointing": True}),
        ("precision", "--precision bf16", {"precision": "bfloat16"}),
        ("optimizer", "--optimizer adamw8bit", {"optimizer": "adamw8bit"}),
    ):
        if any(getattr(settings, field) != value for field, value in change.items()):
            found.append((name, [Change(flag, dataclasses.replace(settings, **change))]))
    return [options for name, options in found if name in available and options]


def _halves(count: int) -> list[int]:
    """count/2, count/4, …, 1, rounded down."""
    return [count >> k for k in range(1, max(1, count).bit_length())]


def make_fit(estimator: Estimator, settings: Settings, free: float, available: frozenset[str]) -> list[str] | None:
    """The flags with which it fits into `free` bytes; empty if it fits as it is, None if none of them suffices.

    As long as the largest phase does not fit, the mildest change that makes this phase fit is taken, or else the strongest
    one that makes it smaller.
    """
    flags: dict[str, str] = {}
    now = estimator(settings)
    while now.peak > free:
        phase = max(now.phases, key=now.phases.__getitem__)
        best: Change | None = None
        least = 0.99 * now.peak
        for options in changes(settings, available):
            for option in options:
                if best is None or least > free:
                    size = estimator(option.settings).phases[phase]
                    if size < least:
                        best, least = option, size
            if best is not None:
                break
        if best is None:
            return None
        settings, now = best.settings, estimator(best.settings)
        flags[best.flag.split()[0]] = best.flag
    return list(flags.values())


def gigabytes(size: float) -> str:
    """`1.2 GB` (10⁹ bytes); small sizes in MB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB" if math.isfinite(size) else "unknown"


def tensors_of(model: Any) -> list[Tensor]:
    """Weights, their gradients and buffers of a model."""
    parameters = list(model.parameters())
    return [*parameters, *model.buffers(), *(p.grad for p in parameters if p.grad is not None)]


def dtype_of(precision: str) -> Any:
    """The torch dtype of a precision."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
