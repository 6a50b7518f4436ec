"""VinePPO: every step start is worth the mean reward of K fresh continuations by the current policy; no value network.

A response is cut into steps (`vantage.segments`). V(s_k) is the mean of the rewards of K continuations of the exact tokens
before step k, sampled as rollouts are, with the budget that is left. Every token of step k gets (arXiv 2410.01679, §4)

    A_k = V(s_{k+1}) − V(s_k),   A_last = R − V(s_last),

whitened over all tokens of the batch. At most the states 0 … M have a value; what comes behind gets advantage 0, and step M
answers for it with R − V(s_M). Equal states are continued once. The continuations are the price: about K times the tokens of
the rollouts for every step that a response has. Stores nothing. docs/vineppo.md has all of it, and what it costs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vantage.errors import UserError
from vantage.estimators.base import Algorithm, Defaults, Estimate, Estimator, Needs, Queried, Reads, Setup
from vantage.lazy import torch
from vantage.segments import Kind, Segments, Splitter, split

if TYPE_CHECKING:
    from torch import Tensor

    from vantage.batch import Batch
    from vantage.collect import Collected
    from vantage.config import TrainConfig
    from vantage.montecarlo.continuations import Continued, Place
    from vantage.montecarlo.passing import Sampled

SPLITTING = (
    "kind",
    "separator",
    "tokens",
    "threshold",
    "lowest",
    "min_segment_tokens",
    "max_segment_tokens",
    "max_segments",
)
"""Options that are the `Splitter`'s; None leaves two of them to the task."""


@dataclass(frozen=True)
class Vineppo(Algorithm):
    """Options of VinePPO."""

    name: ClassVar[str] = "vineppo"
    rollouts_min: ClassVar[int] = 1
    rollouts_default: ClassVar[int] = 1
    defaults: ClassVar[Defaults] = Defaults(aggregation="token-mean")

    continuations: int = 9
    """K, continuations of every state; a value's standard error is about 0.5/√K where success is as likely as failure."""
    cap: int | None = 20
    """M: the states number 0 (the prompt) … M of a response get a value; null: all. Tokens of later steps learn nothing."""
    kind: Kind = "separator"
    """Where steps begin: behind the separator, behind newlines, every --vineppo.tokens tokens, or before tokens that were
    unlikely when they were sampled."""
    separator: str | None = None
    """Text that ends a step. Default: the task's."""
    tokens: int = 512
    """Tokens of a step of --vineppo.kind fixed."""
    threshold: float = 0.2
    """--vineppo.kind lowprob begins a step before tokens of a probability below this."""
    lowest: int | None = None
    """With a number, --vineppo.kind lowprob begins steps before that many of the least likely tokens instead."""
    min_segment_tokens: int | None = None
    """Shorter steps go on into the next one. Default: the task's (32 where it says nothing)."""
    max_segment_tokens: int | None = 512
    """Longer steps are cut into equal parts; null: never."""
    max_segments: int | None = 16
    """Of more steps than this, the starts of so many are kept, evenly; null: all."""
    reuse: bool = False
    """Whether a state also counts what passes through it from earlier states of its prompt: their continuations, and sibling
    rollouts, never the rollout itself. More samples for nothing, still unbiased; not in the paper."""
    whiten: bool = True
    """Whether advantages are brought to mean 0 and variance 1 over all tokens of the batch."""

    def __post_init__(self) -> None:
        if self.continuations < 1:
            raise UserError(f"--vineppo.continuations is {self.continuations}, a value is the mean of at least 1")
        if self.cap is not None and self.cap < 0:
            raise UserError(f"--vineppo.cap is {self.cap}, it must not be negative; 0 values the prompt alone")
        self.splitter(min_segment_tokens=1)

    def splitter(self, **of_task: Any) -> Splitter:
        """The splitter of these options; `of_task` has what a task says of its own steps, for what was left open."""
        given = {name: getattr(self, name) for name in SPLITTING}
        given = {
            name: value for name, value in given.items() if value is not None or name not in ("separator", *of_task)
        }
        return Splitter(**(of_task | given), flags="--vineppo.")

    def check(self, config: TrainConfig) -> None:
        """Flipped rewards of rollouts and clean ones of continuations have different means."""
        if self.reuse and config.reward_noise > 0:
            raise UserError(
                f"--reward-noise is {config.reward_noise}: with it --vineppo.reuse would mix flipped rewards with clean ones; "
                "leave one of them out"
            )

    def warnings(self, config: TrainConfig) -> Sequence[str]:
        """Continuations are judged by the verifier as it is."""
        if config.reward_noise == 0:
            return ()
        return (
            "--reward-noise leaves continuations as they are: VinePPO sees clean verdicts that other algorithms do not",
        )

    def first_step_warnings(self, row: Mapping[str, float]) -> Sequence[str]:
        """Without steps there is nothing that VinePPO could tell apart."""
        if row.get("vineppo/segments_per_response") != 1:
            return ()
        return (
            f"no step found: every response of the first step is a single segment (--vineppo.kind {self.kind}), so VinePPO "
            "has the prompt's value alone; set --vineppo.separator, --vineppo.kind or a lower --vineppo.min-segment-tokens",
        )

    def build(self, setup: Setup) -> Estimator:
        """Make the estimator."""
        return VineppoEstimator(self, setup)


class VineppoEstimator(Estimator):
    """Values by continuations, and the advantages that they give; see the module."""

    needs = Needs(generates=True)

    def __init__(self, options: Vineppo, setup: Setup) -> None:
        self.options, self.setup, self.world = options, setup, setup.world
        if setup.services is not None:
            task = setup.services.workload.task
            self.splitter = options.splitter(separator=task.step_separator, min_segment_tokens=task.min_segment_tokens)

    def query(self, collected: Collected) -> Queried:
        """Continue every state that gets a value, and have the continuations judged.

        Reads: `segment_MT`, the number of each token's step (−1 outside); `value_MT` and `pay_MT`, for each token the value
        of its step's start in outcomes and in what the policy is paid, NaN without one [B, T].
        """
        from vantage.segment_credit import over_tokens, segment_numbers, states_to_value

        batch, tokenizer = collected.batch, self.setup.working().policy.tokenizer
        cuts = [
            split(ids, self.splitter, tokenizer, rollout.logp)
            for ids, rollout in zip(batch.response_ids, collected.rollouts)
        ]
        valued = [states_to_value(len(cut), self.options.cap) for cut in cuts]
        states = self._states(collected, cuts, valued)
        drawn, metrics, notes = self._continued({p.name: p for row in states for p in row}, batch)
        samples = self._samples(batch, states, drawn)
        metrics |= self._counts(cuts, samples, metrics["vineppo/states"])
        number_BT = segment_numbers(cuts, batch.response_mask_BT.shape[1])

        def over(kind: str) -> Tensor:
            rows = [[mean(getattr(s, kind) for s in some) for some in row] for row in samples]
            return over_tokens([row + [math.nan] * (len(cut) - len(row)) for row, cut in zip(rows, cuts)], number_BT)

        return Queried({"segment_MT": number_BT, "value_MT": over("outcome"), "pay_MT": over("pay")}, metrics, notes)

    def _states(self, collected: Collected, cuts: Sequence[Segments], valued: Sequence[int]) -> list[list[Place]]:
        """The first states of each response, as many as get a value."""
        from vantage.montecarlo.continuations import Place, State, problem_name

        batch = collected.batch
        names = {id(problem): problem_name(problem) for problem in {id(p): p for p in collected.problems}.values()}
        return [
            [Place(State(problem, cut.prefix(response, k)), prompt, names[id(problem)]) for k in range(count)]
            for problem, prompt, response, cut, count in zip(
                collected.problems, batch.prompt_ids, batch.response_ids, cuts, valued
            )
        ]

    def _continued(
        self, places: Mapping[bytes, Place], batch: Batch
    ) -> tuple[dict[bytes, list[Sampled]], dict[str, float], list[str]]:
        """The continuations of different states by name; metrics, and notes of reward functions, of all processes.

        A state that several processes have is continued by the first of them.
        """
        from vantage.collect import TrainerState
        from vantage.montecarlo.continuations import Continuer

        services, options, config = self.setup.working(), self.options, self.setup.working().config
        owner: dict[bytes, int] = {}
        for rank, names in enumerate(self.world.exchange(list(places))):
            for name in names:
                owner.setdefault(name, rank)
        mine = [name for name in places if owner[name] == self.world.rank]
        continuer = Continuer(
            services.policy, services.engine, services.workload.rewards, services.sampling, (config.seed, batch.step),
            judged_together=max(1, batch.size), trainer_state=TrainerState(batch.step, config.steps),
        )  # fmt: skip
        found = continuer([(places[name], range(options.continuations)) for name in mine])
        own = {name: self._verdicts(places[name], some) for name, some in zip(mine, found)}
        parts = self.world.exchange((own, continuer.generated, list(continuer.problems)))
        drawn = {name: some for part, _, _ in parts for name, some in part.items()}
        notes = [f"continuations: {note}" for note in dict.fromkeys(note for _, _, part in parts for note in part)]
        missing = sum(math.isnan(sample.outcome) for some in drawn.values() for sample in some)
        return (
            drawn,
            {
                "tokens/value_extra": float(sum(tokens for _, tokens, _ in parts)),
                "vineppo/states": float(len(drawn)),
                "vineppo/unscorable": missing / max(1, options.continuations * len(drawn)),
            },
            notes,
        )

    def _verdicts(self, place: Place, found: Continued) -> list[Sampled]:
        """What a state's continuations earned, and what the policy would have been paid for such responses."""
        from vantage.montecarlo.passing import Sampled
        from vantage.shaping import overlong_penalty

        services, prefix = self.setup.working(), place.state.prefix_ids
        outcome_K, config = torch.from_numpy(found.outcome_K), services.config
        length_K = torch.from_numpy(found.tokens_K) + len(prefix)
        penalty_K = overlong_penalty(length_K, services.sampling.max_new_tokens, config.overlong_buffer or 0)
        pay_K = outcome_K - config.overlong_penalty * penalty_K
        return [
            Sampled((*prefix, *ids) if self.options.reuse else (), len(prefix), outcome, pay)
            for ids, outcome, pay in zip(found.response_ids, outcome_K.tolist(), pay_K.tolist())
        ]

    def _samples(
        self, batch: Batch, states: Sequence[Sequence[Place]], drawn: Mapping[bytes, list[Sampled]]
    ) -> list[list[list[Sampled]]]:
        """For each response and state the samples that make its value."""
        from vantage.montecarlo.passing import Sampled, passing, value_samples

        if not self.options.reuse:
            return [[drawn[place.name] for place in row] for row in states]
        found: list[list[list[Sampled]]] = [[] for _ in states]
        for rows in batch.groups():
            known = {place.state.prefix_ids: drawn[place.name] for b in rows for place in states[b]}
            siblings = [
                Sampled(batch.response_ids[b], 0, float(batch.outcome_B[b]), float(batch.reward_B[b]), b) for b in rows
            ]
            here = passing([*siblings, *(sample for some in known.values() for sample in some)], known)
            for b in rows:
                found[b] = [value_samples(here[place.state.prefix_ids], b) for place in states[b]]
        return found

    def _counts(
        self, cuts: Sequence[Segments], samples: Sequence[Sequence[Sequence[Sampled]]], states: float
    ) -> dict[str, float]:
        """How many steps there are, how many states got a value and from how many samples, over all processes."""
        behind = [len(some) for row in samples for some in row]
        own = [len(cuts), sum(len(cut) for cut in cuts), len(behind), sum(behind)]
        responses, steps, places, used = self.world.sum(torch.tensor(own, dtype=torch.float64)).tolist()
        return {
            "vineppo/segments_per_response": steps / max(1.0, responses),
            "vineppo/states_per_response": places / max(1.0, responses),
            "vineppo/duplicates": 1 - states / max(1.0, places),
            "vineppo/samples_per_value": used / max(1.0, places),
        }

    def advantages(self, batch: Batch, reads: Reads) -> Estimate:
        """Differences of neighbouring values, over tokens; rollouts that could not be judged teach nothing."""
        from vantage.segment_credit import whiten_tokens

        found = batch.queried
        mask_BT = batch.response_mask_BT
        known_BT = mask_BT & batch.scorable_B[:, None]
        raw_BT = step_advantages(found["pay_MT"], found["segment_MT"], batch.reward_B)
        raw_BT = torch.where(known_BT, raw_BT, 0.0)
        advantage_BT = whiten_tokens(raw_BT, known_BT, self.world) if self.options.whiten else raw_BT
        return Estimate(advantage_BT, torch.where(mask_BT, found["value_MT"], 0.0))


def mean(values: Iterable[float]) -> float:
    """Mean of the numbers that are there; NaN without one."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def step_advantages(value_BT: Tensor, segment_BT: Tensor, reward_B: Tensor) -> Tensor:
    """VinePPO's advantage of each token [B, T]: the value behind its step (R behind the last) less that before it.

    `value_BT` has for each token the value of its step's start, NaN where there is none (such a step joins the one before
    it), `segment_BT` the number of its step, −1 outside of the response.
    """
    from vantage.segment_credit import one_step_advantages, over_tokens

    before_BT = torch.nn.functional.pad(segment_BT[:, :-1], (1, 0), value=-1)
    first_BT = (segment_BT >= 0) & (segment_BT != before_BT)
    rows = [
        one_step_advantages(value_T[first_T].tolist(), reward)
        for value_T, first_T, reward in zip(value_BT, first_BT, reward_B.tolist())
    ]
    return over_tokens(rows, segment_BT)
