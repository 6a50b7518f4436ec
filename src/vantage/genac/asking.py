"""What did a step's states and the critic's opinions on them look like? What `learn` needs of them, and their metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from vantage.batch import Batch
from vantage.distributed.world import World
from vantage.genac.critic import Opinion
from vantage.genac.panel import Judged, judge
from vantage.genac.states import States
from vantage.segments import Segments


@dataclass(frozen=True)
class Asked:
    """What was found out about a step: U states of B responses."""

    states: States
    opinions: list[Opinion]
    share_B: list[float]
    """Outcomes as shares of the reward range; NaN where unscorable."""
    targets: list[float]
    """Of each state [U]."""
    success: float
    """Success rate of the step as it was generated, before any filter."""


def shares(batch: Batch, low: float, high: float) -> list[float]:
    """Raw outcomes as shares of the reward range, in [0, 1]; NaN where unscorable [B]."""
    found: list[float] = ((batch.outcome_B.double() - low) / (high - low)).clamp(0, 1).tolist()
    return [r if known else math.nan for r, known in zip(found, batch.scorable_B.tolist())]


def measured(asked: Asked, world: World) -> tuple[Judged, dict[str, float]]:
    """How the critic did on a step's states, which it has not learned from yet, over all processes.

    Every place of a state counts, with its own response's outcome; parsing is counted by completions.
    """
    values = [opinion.value for opinion in asked.opinions]
    places = asked.states.unique.places
    met = [(values[u], asked.share_B[b]) for u, some in enumerate(places) for b, _ in some]
    completions = [
        (rollout.finish_reason == "length", len(rollout.response_ids), value is None)
        for opinion in asked.opinions
        for rollout, value in zip(opinion.rollouts, opinion.values)
    ]
    parts = world.exchange((met, completions, len(values), sum(v is None for v in values)))
    met = [pair for part in parts for pair in part[0]]
    completions = [row for part in parts for row in part[1]]
    count, number = max(1, len(completions)), sum(part[2] for part in parts)
    parsed = 1 - sum(failed for _, _, failed in completions) / count
    judged = replace(judge([v for v, _ in met], [r for _, r in met]), parse_rate=parsed)
    return judged, {
        **judged.metrics("genac/"),
        "genac/length_stops": sum(cut for cut, _, _ in completions) / count,
        "genac/fallbacks": sum(part[3] for part in parts) / max(1, number),
        "genac/states": float(number),
        "genac/completions": float(len(completions)),
        "genac/completion_length": sum(n for _, n, _ in completions) / count,
        "tokens/value_extra": float(sum(n for _, n, _ in completions)),
    }


def segments_of(number_BT: Tensor, lengths: Sequence[int]) -> list[Segments]:
    """The segments that token-wise numbers describe."""
    from vantage.segments import Segments

    found = []
    for row, length in zip(number_BT.tolist(), lengths):
        starts = [t for t in range(length) if t == 0 or row[t] != row[t - 1]]
        found.append(Segments(tuple(starts), length))
    return found
