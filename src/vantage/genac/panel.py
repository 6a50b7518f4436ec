"""How good is the critic? Metrics of predictions against outcomes, and a hold-out panel of states that it never learns from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vantage.distributed.world import World
from vantage.genac.actor import ActorFacts
from vantage.genac.critic import Critic
from vantage.genac.prompt import StateView
from vantage.randomness import Stream, key

NEAR_TOKENS, NEAR_SHARE = 512, 0.1
"""States with at most so many tokens left, or that share of the budget, are near the end."""


@dataclass(frozen=True)
class Judged:
    """How well predictions fit outcomes, both in [0, 1]; NaN where nothing can be said."""

    states: int
    parse_rate: float
    brier: float
    """Mean (r − v)² over what was parsed."""
    brier_penalised: float
    """The same with 1 for every failure."""
    brier_constant: float
    """That of the best constant: the variance of the outcomes."""
    brier_macro: float
    """Mean of the errors on states that ended well (r ≥ ½) and on the others: all-zero predictions get 0.5."""
    pearson: float
    auc: float
    """Chance that a state that ended well is ranked above one that did not; ties count half."""

    def metrics(self, prefix: str) -> dict[str, float]:
        """The numbers by name."""
        return {f"{prefix}{name}": float(value) for name, value in asdict(self).items()}


def judge(values: Sequence[float | None], outcomes: Sequence[float]) -> Judged:
    """Compare predictions (None: a failure) with outcomes; an outcome that is not finite is left out."""
    pairs = [(v, r) for v, r in zip(values, outcomes, strict=True) if math.isfinite(r)]
    parsed = [(v, r) for v, r in pairs if v is not None]
    errors = [(r - v) ** 2 for v, r in parsed]
    good = [(v, e) for (v, r), e in zip(parsed, errors) if r >= 0.5]
    bad = [(v, e) for (v, r), e in zip(parsed, errors) if r < 0.5]
    mean = _mean([r for _, r in pairs])
    return Judged(
        states=len(pairs),
        parse_rate=_mean([float(v is not None) for v, _ in pairs]),
        brier=_mean(errors),
        brier_penalised=(math.fsum(errors) + len(pairs) - len(parsed)) / len(pairs) if pairs else math.nan,
        brier_constant=_mean([(r - mean) ** 2 for _, r in pairs]),
        brier_macro=(_mean([e for _, e in good]) + _mean([e for _, e in bad])) / 2,
        pearson=_pearson(parsed),
        auc=_auc([v for v, _ in good], [v for v, _ in bad]),
    )


def _mean(numbers: Sequence[float]) -> float:
    return math.fsum(numbers) / len(numbers) if numbers else math.nan


def _pearson(pairs: Sequence[tuple[float, float]]) -> float:
    a, b = _mean([v for v, _ in pairs]), _mean([r for _, r in pairs])
    both = math.fsum((v - a) * (r - b) for v, r in pairs)
    spread = math.sqrt(math.fsum((v - a) ** 2 for v, _ in pairs) * math.fsum((r - b) ** 2 for _, r in pairs))
    return both / spread if spread > 0 else math.nan


def _auc(good: Sequence[float], bad: Sequence[float]) -> float:
    """By ranks, so that thousands of states cost no pairs."""
    if not good or not bad:
        return math.nan
    counts: dict[float, list[int]] = {}
    for side, values in enumerate((good, bad)):
        for value in values:
            counts.setdefault(value, [0, 0])[side] += 1
    below, won = 0, 0.0
    for value in sorted(counts):
        above, worse = counts[value]
        won += above * (below + worse / 2)
        below += worse
    return won / (len(good) * len(bad))


@dataclass(frozen=True)
class Panel:
    """States of whole prompt groups, with the outcomes of one response each and the solver's rate at that time.

    It measures the critic on the actor of that moment, so that its curve is the critic's alone.
    """

    views: list[StateView]
    outcomes: list[float]
    rate: float | None
    held_out: frozenset[str]
    """Problems that the critic must not learn from, by their text."""

    def measure(
        self, critic: Critic, actor: ActorFacts, seed: int, step: int, world: World
    ) -> tuple[dict[str, float], int]:
        """Metrics by name from asking the critic about every state, once; also the tokens that this took, of all processes."""
        then = ActorFacts(actor.name, actor.parameters, actor.momentum, self.rate)
        mine = list(world.share(len(self.views)))
        keys = [[key(seed, Stream.CRITIC, step, 2**40 + i)] for i in mine]
        opinions = critic.ask([self.views[i] for i in mine], keys, then)
        tokens = sum(len(r.response_ids) for o in opinions for r in o.rollouts)
        values = world.together([o.value for o in opinions])
        found = judge(values, self.outcomes).metrics("") | self.course(values)
        return found, sum(world.exchange(tokens))

    def course(self, values: Sequence[float | None]) -> dict[str, float]:
        """How predictions move from the prompt to later states, by how these ended, and failures where little budget is left.

        A critic that looks at nothing but the prompt moves by 0 both ways.
        """
        prompts = {v.problem: x for v, x in zip(self.views, values) if v.used == 0}
        moved: dict[bool, list[float]] = {True: [], False: []}
        for view, value, outcome in zip(self.views, values, self.outcomes):
            start = prompts.get(view.problem)
            if view.used and value is not None and start is not None:
                moved[outcome >= 0.5].append(value - start)
        near = [
            x is None for v, x in zip(self.views, values) if v.limit - v.used <= max(NEAR_TOKENS, NEAR_SHARE * v.limit)
        ]
        return {
            "moved_good": _mean(moved[True]), "moved_bad": _mean(moved[False]),
            "near_end_failures": _mean([float(failed) for failed in near]),
        }  # fmt: skip

    def state(self) -> dict[str, Any]:
        """As plain values."""
        views = [[v.problem, v.prefix, v.used, v.limit] for v in self.views]
        return {"views": views, "outcomes": self.outcomes, "rate": self.rate, "held_out": sorted(self.held_out)}

    @staticmethod
    def of_state(state: Mapping[str, Any]) -> Panel:
        """What `state` gave."""
        views = [StateView(*row) for row in state["views"]]
        return Panel(views, list(state["outcomes"]), state["rate"], frozenset(state["held_out"]))


@dataclass(frozen=True)
class Candidate:
    """A prompt group that may become a part of the panel."""

    group: int
    problem: str
    rows: list[tuple[StateView, float]]
    """Its states with the outcome of a response that passed through each, or the mean of several."""


def choose_panel(
    candidates: Sequence[Candidate], share: float, most: int, rate: float | None, order: Callable[[int], int]
) -> Panel | None:
    """Hold out `share` of the prompt groups, in the order of `order(group)`, and more until both outcomes occur.

    At most half of the groups, and `most` states. None where there are fewer than two groups: nothing would be left to
    learn from.
    """
    if share == 0 or len(candidates) < 2:
        return None
    views: list[StateView] = []
    outcomes: list[float] = []
    problems: set[str] = set()
    wanted = max(1, round(share * len(candidates)))
    for number, found in enumerate(sorted(candidates, key=lambda c: order(c.group))[: max(1, len(candidates) // 2)]):
        mixed = any(r >= 0.5 for r in outcomes) and any(r < 0.5 for r in outcomes)
        if number >= wanted and mixed:
            break
        known = [(view, r) for view, r in found.rows if math.isfinite(r)][: most - len(views)]
        views += [view for view, _ in known]
        outcomes += [r for _, r in known]
        problems.add(found.problem)
    return Panel(views, outcomes, rate, frozenset(problems)) if views else None
