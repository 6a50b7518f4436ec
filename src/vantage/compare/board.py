"""What does the person see while a comparison runs? A line for each run, a live one on a terminal, and the time left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Column

from vantage.compare.plan import Cell
from vantage.page import duration


@dataclass
class Clock:
    """How long is left, judged by the finished runs of the same algorithm, else of all, else by the running one."""

    spent: dict[str, list[float]] = field(default_factory=dict)

    def add(self, algorithm: str, seconds: float) -> None:
        """Note what a run took."""
        self.spent.setdefault(algorithm, []).append(seconds)

    def expected(self, algorithm: str) -> float | None:
        """Seconds that a run of this algorithm takes; None before any run is finished."""
        known = self.spent.get(algorithm) or [s for seconds in self.spent.values() for s in seconds]
        return sum(known) / len(known) if known else None

    def left(self, waiting: Sequence[Cell], running: float = 0.0, share: float = 0.0) -> float | None:
        """Seconds for the first of `waiting`, which runs since `running` seconds and is done by `share`, and the rest."""
        if not waiting:
            return 0.0
        whole = running / share if share > 0.02 else self.expected(waiting[0].algorithm)
        if whole is None:
            return None
        rest = sum(self.expected(cell.algorithm) or whole for cell in waiting[1:])
        return max(0.0, whole - running) + rest


class Board:
    """What the person sees: a line at the end of each run, and a live one on a terminal."""

    def __init__(self, total: int, silent: bool = False) -> None:
        self.total = total
        self.console = Console(stderr=True, quiet=silent)
        self.bar = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=self.console,
            transient=True,
            refresh_per_second=2,
            disable=silent or not self.console.is_terminal,
        )
        self.task = self.bar.add_task("")

    def __enter__(self) -> Board:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    @property
    def live(self) -> bool:
        """Whether there is a terminal that shows a running line."""
        return not self.bar.disable

    def show(self, number: int, cell: Cell, step: int, accuracy: float | None, left: float | None) -> None:
        """The state of the running run."""
        known = "" if accuracy is None else f", accuracy {accuracy:.3f}"
        remaining = "" if left is None else f", {duration(left)} left"
        said = f"run {number} of {self.total}{remaining}: {cell.name}, step {step}{known}"
        self.bar.update(self.task, description=said)

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)
