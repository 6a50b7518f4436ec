"""What is `vantage critic score` asked? Read before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vantage.errors import UserError


@dataclass(frozen=True)
class ScoreConfig:
    """Ask a saved critic about states of a policy's responses to held-out problems."""

    critic: str
    """Folder of a critic, or a run directory that has one, or `embedded`."""
    model: str = "tiny"
    """The policy whose responses are judged, as in `vantage train`."""
    task: str = "sums"
    """Problems and verifier, as in `vantage train`."""
    problems: int = 100
    """Held-out problems."""
    rollouts: int = 4
    """Responses to each problem."""
    samples: int = 1
    """Completions of the critic for each state; their valid values are averaged."""
    reading: Literal["sampled", "expected"] = "sampled"
    """`expected` replaces each score by the expectation over the eleven labels behind the same reasoning."""
    rate: float | None = None
    """Success rate to show in the prompt. Default: the policy's own, measured on training problems."""
    continuations: int = 0
    """Continuations of each state, to compare values with Monte-Carlo truth; 0 compares with outcomes only."""
    icc: bool = True
    """Whether the critic was trained with In-Context Conditioning."""
    max_new_tokens: int | None = None
    """Longest response in tokens. Default: the task's, else 512."""
    seed: int = 0
    """Every draw depends on it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where policy and critic live."""
    out: str | None = None
    """Folder for the results as JSON and the states with their values as JSON lines. Default: the table only."""

    def __post_init__(self) -> None:
        from vantage.config import check_numbers

        check_numbers(self, ("problems", "rollouts", "samples", "max_new_tokens"), ("continuations",))
        if self.rate is not None and not 0 <= self.rate <= 1:
            raise UserError(f"--rate is {self.rate}, it must be in [0, 1]")
        if self.continuations == 1:
            raise UserError("--continuations is 1, which says nothing of its noise; give 0 or at least 2")
