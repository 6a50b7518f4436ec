"""How did a paper evaluate? Benchmarks, responses to a problem, temperature, top-p and length: `vantage eval --preset`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vantage.tasks import task_specs

if TYPE_CHECKING:
    from vantage.config import EvalConfig


@dataclass(frozen=True)
class Protocol:
    """A paper's way to evaluate.

    Attributes:
        responses: Benchmarks and the number of responses to each of their problems.
        temperature, top_p: How tokens are drawn.
        max_new_tokens: Longest response.
        k: Responses to each problem of a benchmark that the paper does not have.
        note: In what it differs from the paper, or what the paper leaves open; printed with the results.
    """

    responses: Mapping[str, int]
    temperature: float
    top_p: float
    max_new_tokens: int
    k: int
    note: str


PRESETS: dict[str, Protocol] = {
    "poise": Protocol(
        dict.fromkeys(("amc23", "aime24", "aime25", "aime26", "hmmt25", "brumo25"), 32),
        temperature=0.6,
        top_p=0.95,
        max_new_tokens=8192,
        k=32,
        note="the paper has AMC 2024 as well, of which there is no settled copy on the Hub",
    ),
    "vimpo": Protocol(
        {"math500": 1, "aime24": 32, "aime25": 32, "olympiadbench": 1},
        temperature=1.0,
        top_p=0.7,
        max_new_tokens=4096,
        k=1,
        note="temperature and top-p are those of the official code's validation; those of the paper's table are not known",
    ),
    "genac": Protocol(
        {"math500": 4, "aime24": 32, "aime25": 32, "amc23": 32, "minerva": 4, "olympiadbench": 4},
        temperature=1.0,
        top_p=1.0,
        max_new_tokens=8192,
        k=4,
        note="the paper's sampling is not known, and of its six benchmarks MATH500 and AIME24 only; the rest is our choice",
    ),
}


def eval_tasks(config: EvalConfig) -> list[str]:
    """The specs of the tasks to evaluate on: given, the preset's, or `sums`; raises `UserError`."""
    if config.task is not None:
        return task_specs(config.task)
    return list(PRESETS[config.preset].responses) if config.preset else ["sums"]
