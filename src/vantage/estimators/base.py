"""The estimator contract: everything a value estimate may ask of the trainer, and everything the trainer asks of it.

An algorithm is two classes in one module. `Algorithm` is a frozen dataclass of options: what the command line and YAML
show, cheap to import. `Estimator` is built from it once the policy is known, and has seven hooks, called in this order in a
step: `needs` (once) → `query` → `read` (every micro-batch) → `advantages` → `loss` (every micro-batch) → `learn` →
`state_dict`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vantage.distributed.world import World

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from vantage.batch import Batch
    from vantage.collect import Collected
    from vantage.config import TrainConfig
    from vantage.distributed.sharding import Sharding
    from vantage.policy import Forward, Policy
    from vantage.rollout.engine import Engine, Sampling
    from vantage.workload import Workload

Reads = Mapping[str, "Tensor"]
"""What `read` kept of a forward pass: named tensors whose first axis is the rollout."""


@dataclass(frozen=True)
class Defaults:
    """What the algorithm's paper uses where the user says nothing: settings of `vantage.config.TrainConfig`."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    aggregation: str = "seq-mean-token-sum-norm"
    overlong_share: float = 0.0
    """`overlong_buffer` as a share of the response budget."""
    group_filter: Literal["none", "equal"] = "none"


@dataclass(frozen=True)
class Services:
    """What an estimator may work with beyond a batch: to copy the policy, continue its prefixes, have them judged."""

    policy: Policy
    engine: Engine
    sampling: Sampling
    """How rollouts are sampled; what is sampled for a value must be sampled alike."""
    workload: Workload
    config: TrainConfig
    sharding: Sharding | None = None
    """Where models are dealt out over processes: deals out one of the estimator's own too."""


@dataclass(frozen=True)
class Setup:
    """What an estimator may know when it is built."""

    num_layers: int
    """Decoder blocks of the policy; `hidden_states` has one entry more, 0 being the embeddings."""
    hidden_size: int
    rollouts_per_prompt: int
    reward_range: tuple[float, float]
    think_end_ids: tuple[int, ...] = ()
    """Token ids of the closing thinking tag."""
    end_ids: tuple[int, ...] = ()
    """Token ids that end a response."""
    max_new_tokens: int = 512
    """Response budget in tokens."""
    world: World = field(default_factory=World)
    """The processes of the run. Only `query`, `advantages` of an estimator that `needs.whole_batch` or
    reads nothing, and `learn`, may use it: these are called once by every process."""
    services: Services | None = None
    """None where an estimator is built apart from a trainer; `working` says so in words."""

    def working(self) -> Services:
        """The services of a trainer; raises `ValueError` where there is none."""
        if self.services is None:
            raise ValueError("this estimator generates or trains a model: it must be built by a Trainer")
        return self.services


@dataclass(frozen=True)
class Needs:
    """What the trainer must build for this estimator; what is not asked for costs nothing."""

    hidden_layers: tuple[int, ...] = ()
    """Layers that `read` wants, counted as transformers' `hidden_states`: 0 = embeddings, k = output of block k−1."""
    reads_policy: bool = False
    """Whether `advantages` uses what `read` returns; if not, it is called before any forward pass."""
    whole_batch: bool = False
    """Whether `advantages` must see the reads of the whole batch at once (whitening); then there is a pre-pass."""
    live: bool = False
    """Whether advantages must follow the current policy: reads are then taken anew at every optimizer step."""
    reference: Literal["none", "logp", "kl"] = "none"
    """What forward passes carry of the reference: nothing, the sampled tokens' log-probs, or also the KL over the whole
    vocabulary. The estimator sees one number a token, never a distribution. Say the same in `Algorithm.compares`."""
    generates: bool = False
    """Whether `query` generates with the policy, or runs it otherwise. It must say so: where the policy is dealt out over
    processes it is put together for that."""
    kl_grad: bool = False
    """Whether `loss` differentiates the KL; without, it takes no memory beyond one chunk of logits."""


@dataclass(frozen=True)
class Queried:
    """What `query` found out about a step's rollouts."""

    reads: Reads = field(default_factory=dict)
    """One row a rollout of this process, kept as `batch.queried`; a name that ends in `_MT` has the tokens last [B, T]."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Scalars for the log, of all processes; `tokens/value_extra` has what was generated."""
    notes: Sequence[str] = ()
    """What went wrong in reward functions meanwhile, on all processes, in one line each."""


@dataclass(frozen=True)
class Estimate:
    """Advantages and values of a batch; detached."""

    advantage_BT: Tensor
    value_BT: Tensor
    """Must not depend on the rollout's own reward. NaN where there is no estimate (it is left out of `value/*`)."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Scalars of this call; means over micro-batches are logged."""
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    """What `loss` needs of the whole batch, one row a rollout: [B], or [B, T] with the tokens last."""
    pull_B: Tensor | None = None
    """What `loss` weighs each rollout's log-prob with [B], where there is such a loss: an advantage in all but name."""


@dataclass(frozen=True)
class State:
    """What an estimator saves: tensors (safetensors) and plain values (JSON)."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


class Estimator:
    """A value estimate at work. Subclasses override the hooks that they need; the trainer knows none by name."""

    needs: Needs = Needs()
    dealt_out: bool = False
    """Whether a model of its own is dealt out: every process then calls `save_pretrained`, and the main one writes."""
    update_policy: bool = True
    """While False the policy rests and only `learn` happens (value pretraining)."""

    def query(self, collected: Collected) -> Queried:
        """Find out what no forward pass of the policy says: run a critic, continue prefixes and have them judged.

        Called once a step by every process that has the step's rollouts before it, with the policy that made them. May
        keep in the estimator what `learn` will need of this step.
        """
        return Queried()

    def read(self, forward: Forward) -> Reads:
        """Reduce one micro-batch's forward pass to small detached tensors, one row a rollout. No communication."""
        return {}

    def advantages(self, batch: Batch, reads: Reads) -> Estimate:
        """Turn rewards and reads into advantages.

        `batch` holds whole prompt groups: the full batch, or, where the trainer fuses the forward that reads with the
        one that trains, the groups of one micro-batch. Must not change the estimator.
        """
        raise NotImplementedError

    def loss(self, forward: Forward, batch: Batch, estimate: Estimate, weight_M: Tensor) -> Tensor | None:
        """A loss term of the estimator's own on policy parameters: Σ weight·loss over the rollouts of a micro-batch.

        `estimate` has the micro-batch's rows of what `advantages` returned, and `weight_M` [M] is one over the number of
        rollouts of the optimizer step on all processes, or 0 for a rollout that is left out, so that terms add up to a mean.
        """
        return None

    def learn(self, batch: Batch, reads: Reads, estimate: Estimate) -> Mapping[str, float]:
        """Learn from a batch after the update; returns metrics. The only hook that changes the estimator."""
        return {}

    def state_dict(self) -> State:
        """All that must survive a restart."""
        return State()

    def load_state_dict(self, state: State) -> None:
        """Restore what `state_dict` returned; raises `UserError` if it does not fit this estimator."""

    def close(self) -> None:
        """End what runs outside of this process; called when training ends, however it ends. Default: nothing."""

    def save_pretrained(self, folder: Path) -> None:
        """Write what others can use when the run ends (a critic), into a folder that does not exist yet. Default: nothing."""


@dataclass(frozen=True)
class Algorithm:
    """Options of an algorithm; subclass it, one field an option, the docstring under the field its help."""

    name: ClassVar[str]
    rollouts_min: ClassVar[int] = 1
    """Fewest rollouts per prompt with which the algorithm makes sense."""
    rollouts_default: ClassVar[int] = 1
    defaults: ClassVar[Defaults] = Defaults()
    compares: ClassVar[bool] = False
    """Whether the algorithm itself needs a reference, whatever --kl-coef says."""

    def check(self, config: TrainConfig) -> None:
        """Raise `UserError` for settings of the run that make no sense with this algorithm."""

    def warnings(self, config: TrainConfig) -> Sequence[str]:
        """What of a resolved configuration is probably not meant, a line each."""
        return ()

    def first_step_warnings(self, row: Mapping[str, float]) -> Sequence[str]:
        """What the first step's row of metrics says is probably not meant, a line each."""
        return ()

    def trained_beside(self) -> tuple[Literal["none", "values", "language"], str | None]:
        """What else has weights that are trained, for estimates of memory: a model with a value head or a language model.

        With its name as --model takes it; None for a copy of the policy.
        """
        return "none", None

    def build(self, setup: Setup) -> Estimator:
        """Make the estimator for a policy; raises `UserError` where an option does not fit it."""
        raise NotImplementedError
