"""GenAC: a critic that is a language model reasons about unfinished responses and says an integer 0..10.

At each segment start s_k of a response the critic reads problem, prefix and facts about the actor; V(s_k) is a tenth of
its score (Shan et al., arXiv 2604.10701). Generalised advantage estimation over segments gives every token of segment k

    A_k = δ_k + γλ A_{k+1},    δ_k = r_k + γ V(s_{k+1}) − V(s_k),    V behind the end 0,

and the critic learns by REINFORCE on the very completions that gave the values, with the reward 1 − (r − v)². A prefix ends
before the segment that it serves, so at λ = 1 an error of the critic's costs variance only.

Stages: supervised on an oracle's traces, reinforcement with the actor at rest until the gates open, then both together.
Stored: the critic's weights and optimizer, the success rate shown in its prompts, stage, hold-out panel. docs/genac.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from vantage.errors import UserError
from vantage.estimators.base import Algorithm, Defaults, Estimator, Setup
from vantage.segments import Kind

AT_LEAST_ONE = (
    "samples", "segment_tokens", "min_segment_tokens", "max_segment_tokens", "max_segments", "critic_tokens", "sft_batch",
    "sft_examples",
)  # fmt: skip
NOT_NEGATIVE = (
    "train_states", "sft_steps", "sft_continuations", "pretrain_steps", "rival_steps", "panel_states", "panel_every",
    "success_problems", "critic_weight_decay", "critic_max_grad_norm",
)  # fmt: skip
SHARES = ("gae_lambda", "momentum", "gate_parse", "max_failures", "panel_share", "sft_own", "sft_tolerance")


@dataclass(frozen=True)
class Genac(Algorithm):
    """Options of GenAC."""

    name: ClassVar[str] = "genac"
    rollouts_default: ClassVar[int] = 8
    defaults: ClassVar[Defaults] = Defaults(clip_low=0.2, clip_high=0.2, aggregation="token-mean")

    critic: str | None = None
    """Where the critic starts: `copy` (of the policy), a folder that `vantage critic` or a run has left, or any model.
    Default: the embedded critic for an embedded policy on its own world, else `copy`."""
    template: str | None = None
    """File with a prompt template of your own. Default: the saved critic's, else one that fits its tokenizer."""
    icc: bool = True
    """In-Context Conditioning: whether the prompt describes the solver (name, size, success rate)."""
    actor_name: str | None = None
    """What the prompt calls the solver. Default: the model."""
    momentum: float = 0.9
    """How slowly the success rate in the prompt follows that of the batches."""
    success_problems: int = 128
    """Training problems with which the first success rate is measured, before the critic is asked for the first time."""
    samples: int = 1
    """Completions for each state; their valid values are averaged."""
    reading: Literal["sampled", "expected"] = "sampled"
    """`expected` replaces each score by the expectation over the eleven labels behind the same reasoning."""
    critic_tokens: int | None = None
    """Longest completion of the critic in tokens. Default: the saved critic's, else 1024, and 128 for one of characters."""

    segmentation: Kind = "separator"
    """Where states are: behind the task's step separator, behind newlines, every so many tokens, before unlikely tokens."""
    segment_tokens: int = 512
    """Tokens of a segment of `fixed`."""
    lowprob: float = 0.2
    """`lowprob` cuts before tokens of a probability below this."""
    min_segment_tokens: int | None = None
    """Shortest segment. Default: the task's."""
    max_segment_tokens: int = 512
    """Longer segments are cut into near-equal parts."""
    max_segments: int = 16
    """States of a response at most, evenly among those found; the cost of the critic is in proportion."""
    final_action: bool = False
    """Ask also before the last token of each response, and use that value as its baseline."""

    gae_lambda: float = 1.0
    """λ of each segment; below 1 the bias of the critic enters."""
    gamma: float = 1.0
    """Discount of each segment."""
    whiten: bool = True
    """Whether advantages are brought to mean 0 and variance 1 over the response tokens of the step."""

    baseline: Literal["none", "leave_one_out", "leave_one_out_by_outcome"] = "leave_one_out_by_outcome"
    """What is taken from the critic's reward: nothing (the paper), the mean of all other completions, that of the others
    with the same outcome."""
    critic_loss: Literal["token-mean", "seq-mean"] = "token-mean"
    """Whether the critic's loss is divided by tokens or by completions."""
    critic_learning_rate: float | None = None
    """Learning rate of the critic's AdamW, constant. Default: 1e-6, and 1e-4 for a critic of characters."""
    critic_weight_decay: float = 0.0
    """Decoupled weight decay of the critic."""
    critic_max_grad_norm: float = 1.0
    """The critic's gradients are scaled down to this norm; 0 is off."""
    train_states: int = 0
    """States that the critic learns from in a step, drawn with all their completions and weighed by one over the
    probability; 0 takes all."""

    traces: str | None = None
    """JSON-lines file with an oracle's traces for the supervised stage. Default: the task's own critiques, where it has any."""
    teacher: str | None = None
    """Stronger model that writes the traces: it reads the critic's prompt about states of the policy's own rollouts."""
    sft_examples: int = 8192
    """Traces to learn from, in equal shares of early, middle and late states and of good and bad endings."""
    sft_steps: int | None = None
    """Optimizer steps of the supervised stage; 0 leaves it out. Default: two epochs, and 1,600 for a critic of characters."""
    sft_batch: int | None = None
    """Traces in a step. Default: 64, and 16 for a critic of characters."""
    sft_learning_rate: float | None = None
    """Its peak learning rate. Default: 1e-5, and 2e-3 for a critic of characters."""
    sft_own: float = 0.5
    """Share of a task's own critiques that are about states of the policy's own rollouts; the others are about demonstrations
    by solvers of every skill."""
    sft_continuations: int = 0
    """Continuations of each state of the policy's own rollouts: a teacher's best of four completions is kept by them, and a
    task's own critiques get the score that they say. 0 is none."""
    sft_tolerance: float = 0.2
    """A trace whose score is further than this from what continuations say, where that is known, is left out."""

    pretrain_steps: int = 100
    """Steps at most in which the policy rests and the critic learns; fewer where the gates open before."""
    gates: Literal["warn", "stop", "off"] = "warn"
    """What happens where the gates are still closed after these steps; `off` has no gates and takes all of them."""
    gate_parse: float = 0.98
    """Share of the critic's answers that must be parsable."""
    rival_steps: int = 0
    """From so many steps of pretraining on the critic must also be better, on new states, than a discriminative critic of the
    policy's size that has learned from the same states; 0 has none. It is a further model in memory while the policy rests.
    Without gates it is measured alone."""
    max_failures: float = 0.05
    """A step with a larger share of answers that can not be parsed does not move the policy."""
    panel_share: float = 0.125
    """Share of the first step's prompts that the critic never learns from; 0 is no panel."""
    panel_states: int = 128
    """States at most in this hold-out panel."""
    panel_every: int = 25
    """Steps between measurements on the panel; 0 is never."""

    def __post_init__(self) -> None:
        for name in AT_LEAST_ONE:
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{flag(name)} is {value}, it must be at least 1")
        for name in NOT_NEGATIVE:
            if (value := getattr(self, name)) is not None and value < 0:
                raise UserError(f"{flag(name)} is {value}, it must not be negative")
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{flag(name)} is {getattr(self, name)}, it must be in [0, 1]")
        if not 0 < self.gamma <= 1:
            raise UserError(f"--genac.gamma is {self.gamma}, it must be in (0, 1]")
        if not 0 < self.lowprob < 1:
            raise UserError(f"--genac.lowprob is {self.lowprob}, it must lie between 0 and 1")
        for name in ("critic_learning_rate", "sft_learning_rate"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise UserError(f"{flag(name)} is {value}, it must be greater than 0")
        if self.traces is not None and self.teacher is not None:
            raise UserError("--genac.traces and --genac.teacher are two sources of the same; give one of them")
        if self.rival_steps > self.pretrain_steps:
            raise UserError(
                f"--genac.rival-steps is {self.rival_steps}, more than --genac.pretrain-steps ({self.pretrain_steps}): the "
                "critics would never be compared"
            )
        if self.panel_share > 0.5:
            raise UserError(
                f"--genac.panel-share is {self.panel_share}, more than half of the prompts can not be held out"
            )

    def trained_beside(self) -> tuple[Literal["none", "values", "language"], str | None]:
        """The critic, a language model."""
        return "language", None if self.critic in (None, "copy") else self.critic

    def build(self, setup: Setup) -> Estimator:
        """Make the estimator with its critic."""
        from vantage.genac.estimator import GenacEstimator

        return GenacEstimator(self, setup)


def flag(name: str) -> str:
    """The command line's spelling of an option."""
    return f"--genac.{name.replace('_', '-')}"
