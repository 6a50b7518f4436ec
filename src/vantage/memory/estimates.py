"""Does a model with these settings fit? An estimate of the memory that training takes, before any weight is loaded.

All numbers are bytes. The model is built on the meta device from its configuration alone, and the parts of a step are run
there (`vantage.memory.trace`), so the count holds for any architecture that transformers knows. What lives in a step:

    resident  weights + optimizer (two float32 moments, or 8-bit ones) + frozen reference + critic (its weights and optimizer)
    rollout   resident + prefill, or key-value cache, logits and the sampler's tensors at the last token, and under bfloat16
              arithmetic the linear weights that `vantage.rollout.weights` casts for the phase
    update    resident + gradients + activations of one micro-batch and its logit chunk
    step      resident + gradients + what the optimizer needs while it works
    critic    resident + the critic's gradients + its activations over one micro-batch
    saving    resident + a copy of the optimizer's moments, where the model lives in the memory of the host

Trained weights, their gradients and moments are float32 whatever the arithmetic. Of a policy with adapters only these are
trained, and the base has the type of the arithmetic.

The peak is the largest of the last five. What an allocator wastes, and what Python and libraries hold, is not in it.

Where models are dealt out over N processes (FSDP2), each holds 1/N of weights, gradients and moments of all of them, and

    rollout   has the policy put together besides, blocks in the type of the arithmetic
    scoring   resident + what is put together for log-probs under a reference or for a critic's values, and the pass
    update    has what is put together around a block and of its gradients (`vantage.memory.dealt`)
    loading   on a CPU: the models whole, before they are dealt out
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vantage.lazy import torch
from vantage.plugins import one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from vantage.config import TrainConfig
    from vantage.memory.model import ShapePolicy
    from vantage.models.holding import Lora

FLOAT32, BFLOAT16 = 4, 2
MOMENT_BYTES = {"adamw": 2 * FLOAT32, "adamw-8bit": 2}
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
    """Of the arithmetic, the cache, and weights that are only run."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    checkpointing: bool = False
    """Whether a decoder block's activations are computed again in the backward pass."""
    reference: Literal["none", "copy", "named"] = "none"
    """A frozen copy of the policy (of one with adapters: the policy without them), or a model by name."""
    exact_kl: bool = False
    """Whether the KL to the reference is taken over the vocabulary."""
    critic: Literal["none", "values", "language"] = "none"
    """A model with a value head, or a language model, that is trained beside the policy."""
    lora: Lora | None = None
    on_cpu: bool = False
    """Whether the model lives where checkpoints are made."""
    top_p: float = 1.0
    top_k: int = 0
    processes: int = 1
    """That train together; what is reckoned is one of them."""
    sharded: bool = False
    """Whether models are dealt out over them."""

    @property
    def dealt(self) -> bool:
        """Whether a process holds less than the whole."""
        return self.sharded and self.processes > 1

    @property
    def shares(self) -> int:
        """Processes over which a model is dealt out."""
        return self.processes if self.dealt else 1

    @property
    def rollout_tokens(self) -> int:
        """Length of the longest rollout, prompt included."""
        return self.prompt_tokens + self.new_tokens

    @property
    def rows(self) -> int:
        """Longest rollouts in a micro-batch."""
        return max(1, self.microbatch_tokens // self.rollout_tokens)

    @staticmethod
    def of(config: TrainConfig, prompt_tokens: int, processes: int = 1, **more: Any) -> Settings:
        """From a resolved configuration; `more` are settings that it has no field for (`precision`, `on_cpu`, `sharded`)."""
        from vantage.models.holding import ModelOptions

        compared = config.kl_coef > 0 or config.algo.compares
        return Settings(
            prompt_tokens=prompt_tokens,
            new_tokens=config.max_new_tokens or 512,
            microbatch_tokens=config.tokens_per_microbatch or 4096,
            generation_rows=min(config.generation_batch, math.ceil(config.prompts / processes) * config.group_size),
            rollouts_per_prompt=config.group_size,
            chunk_tokens=config.logit_chunk_tokens,
            optimizer=config.optimizer,
            checkpointing=config.gradient_checkpointing,
            reference="none" if not compared else "copy" if config.reference is None else "named",
            exact_kl=config.algo.compares or (config.kl_coef > 0 and config.kl_estimator == "exact"),
            critic=config.algo.trained_beside()[0],
            lora=ModelOptions.of(config).lora,
            top_p=config.top_p,
            top_k=config.top_k,
            processes=processes,
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
    """Moments."""
    reference: int
    critic: int
    """Weights and optimizer of a critic."""
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
    critic_work: int = 0
    """Gradients and activations of a critic, which live when the policy's do not."""
    together: int = 0
    """The policy put together for generation, where it is dealt out."""
    scoring: int = 0
    """Models put together for log-probs under a reference and for values, and the pass."""
    loading: int = 0
    """On a CPU: models before they are dealt out."""

    @property
    def resident(self) -> int:
        """What stays through a whole step."""
        return self.weights + self.optimizer + self.reference + self.critic

    @property
    def phases(self) -> dict[str, int]:
        """The need of each phase of a step."""
        update = self.resident + self.gradients
        found = {
            "rollout": self.resident + self.together + self.rollout,
            "update": update + self.activations,
            "optimizer step": update + self.optimizer_work,
            "checkpoint": self.resident + self.saving,
        }
        more = {
            "critic": self.resident + self.critic_work if self.critic_work else 0,
            "scoring": self.resident + self.scoring if self.scoring else 0,
            "loading": self.loading,
        }
        return found | {phase: size for phase, size in more.items() if size}

    @property
    def peak(self) -> int:
        """The largest of the phases."""
        return max(self.phases.values())


def parameter_bytes(parameters: int, precision: str) -> int:
    """So many numbers."""
    return parameters * (BFLOAT16 if precision == "bfloat16" else FLOAT32)


def optimizer_bytes(parameters: int, optimizer: str) -> int:
    """AdamW's moments."""
    return parameters * MOMENT_BYTES[optimizer]


def optimizer_work_bytes(parameters: int, optimizer: str = "adamw", on_cpu: bool = True) -> int:
    """AdamW over lists of tensors holds the root of all second moments at once, in float32; a fused or 8-bit one does not."""
    return parameters * FLOAT32 if on_cpu and optimizer == "adamw" else 0


def cache_bytes(layers: int, kv_heads: int, head_dim: int, tokens: int, precision: str) -> int:
    """Keys and values of so many tokens (rows × length), in every layer."""
    return parameter_bytes(2 * layers * kv_heads * head_dim * tokens, precision)


class Estimator:
    """Estimates of one model under different settings; what a change leaves as it was is not run again.

    `others` has the configurations of `reference` and `critic` where these are not the policy's.
    """

    def __init__(self, model_config: Any, others: Mapping[str, Any] | None = None) -> None:
        self.model_config, self.others = model_config, dict(others or {})
        self._known: dict[tuple[Any, ...], Any] = {}

    def __call__(self, settings: Settings) -> Estimate:
        """See `estimate`."""
        try:
            return self._estimate(settings)
        except (RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
            name = getattr(self.model_config, "model_type", type(self.model_config).__name__)
            raise ValueError(f"the memory of a {name} model can not be estimated: {one_line(error)}") from error

    def _estimate(self, settings: Settings) -> Estimate:
        policy = self._model("policy", settings)
        shares = settings.shares
        trained = policy.held(shares, trained=True)
        rollout, cache = self._once(self._key("rollout", settings), lambda: policy.rollout_bytes(settings))
        critic, critic_work = self._critic(settings)
        return Estimate(
            parameters=policy.parameters,
            weights=parameter_bytes(trained, "float32")
            + parameter_bytes(policy.held(shares) - trained, settings.precision),
            gradients=parameter_bytes(trained, "float32"),
            optimizer=optimizer_bytes(trained, settings.optimizer),
            reference=self._reference(settings, shares),
            critic=critic,
            activations=self._once(self._key("update", settings), lambda: policy.update_bytes(settings)),
            optimizer_work=optimizer_work_bytes(trained, settings.optimizer, settings.on_cpu),
            rollout=rollout,
            cache=cache,
            saving=self._saving(settings, policy, trained) if settings.on_cpu else 0,
            critic_work=critic_work,
            **(self._put_together(settings, policy) if settings.dealt else {}),
        )

    @staticmethod
    def _saving(settings: Settings, policy: ShapePolicy, trained: int) -> int:
        """A copy of the moments, and on the main process the whole model where it is dealt out."""
        whole = parameter_bytes(policy.parameters, "float32") if settings.dealt else 0
        return optimizer_bytes(trained, settings.optimizer) + whole

    def _put_together(self, settings: Settings, policy: ShapePolicy) -> dict[str, int]:
        """What of an estimate is there only where models are dealt out."""
        shares = settings.processes
        whole, scoring = policy.whole_bytes(shares), [0]
        if settings.reference != "none":
            reference = policy if settings.reference == "copy" else self._model("reference", settings)
            both = whole if settings.exact_kl and settings.lora is None else 0
            alone = dataclasses.replace(settings, exact_kl=False)
            work = self._once(self._key("scored reference", alone), lambda: reference.scoring_bytes(alone))
            scoring.append(reference.whole_bytes(shares) + both + work)
        if settings.critic != "none":
            critic, values = self._model("critic", settings), settings.critic == "values"
            alone = dataclasses.replace(settings, exact_kl=False, lora=None)
            work = self._once(
                self._key(f"scored {settings.critic}", alone), lambda: critic.scoring_bytes(alone, values)
            )
            scoring.append(critic.whole_bytes(shares, trunk=values) + (0 if values else whole) + work)
        loading = [self._whole_states("policy", settings)] if settings.on_cpu else [0]
        if (
            settings.on_cpu
            and settings.reference != "none"
            and (settings.reference == "named" or settings.lora is None)
        ):
            loading.append(self._whole_states("reference", settings))
        if settings.on_cpu and settings.critic != "none":
            loading.append(self._whole_states("critic", settings))
        return {"together": whole, "scoring": max(scoring), "loading": sum(loading)}

    def _whole_states(self, role: str, settings: Settings) -> int:
        model = self._model(role, settings)
        return parameter_bytes(model.held(1, trunk=role == "critic" and settings.critic == "values"), "float32")

    def _reference(self, settings: Settings, shares: int) -> int:
        if settings.reference == "named":
            return parameter_bytes(self._model("reference", settings).held(shares), settings.precision)
        copied = settings.reference == "copy" and settings.lora is None
        return parameter_bytes(self._model("policy", settings).held(shares), "float32") if copied else 0

    def _critic(self, settings: Settings) -> tuple[int, int]:
        """What stays of a critic, and what it takes while it learns; one with a value head has no language head."""
        if settings.critic == "none":
            return 0, 0
        model = self._model("critic", settings)
        count = model.held(settings.shares, trunk=settings.critic == "values")
        alone = dataclasses.replace(settings, exact_kl=False, lora=None)
        work = self._once(
            self._key(settings.critic, alone),
            lambda: model.update_bytes(alone, values=settings.critic == "values"),
        )
        states = parameter_bytes(count, "float32") + optimizer_bytes(count, "adamw")
        return states, parameter_bytes(count, "float32") + work

    def _model(self, role: str, settings: Settings) -> ShapePolicy:
        from vantage.memory.model import ShapePolicy

        lora = settings.lora if role == "policy" else None
        configuration = self.others.get(role, self.model_config)
        found: ShapePolicy = self._once(
            ("model", id(configuration), settings.precision, lora, settings.dealt),
            lambda: ShapePolicy(configuration, settings.precision, lora, settings.dealt),
        )
        return found

    @staticmethod
    def _key(phase: str, settings: Settings) -> tuple[Any, ...]:
        lengths = (settings.precision, settings.lora, settings.prompt_tokens, settings.new_tokens, settings.shares)
        if phase == "rollout":
            return (
                phase,
                *lengths,
                settings.generation_rows,
                settings.rollouts_per_prompt,
                settings.top_p,
                settings.top_k,
            )
        beside = settings.exact_kl and settings.reference
        return (phase, *lengths, settings.rows, settings.chunk_tokens, settings.checkpointing, beside, settings.on_cpu)

    def _once(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]


def estimate(model_config: Any, settings: Settings) -> Estimate:
    """What training a model of this transformers configuration takes; reference and critic are of the same.

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
        ("optimizer", "--optimizer adamw-8bit", {"optimizer": "adamw-8bit"}),
    ):
        possible = not (settings.dealt and name == "optimizer")  # moments of 8 bits can not be dealt out
        if possible and any(getattr(settings, field) != value for field, value in change.items()):
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
