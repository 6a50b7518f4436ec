"""What a run writes as it goes: metrics.jsonl, samples.jsonl, config.yaml, and the progress line."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from vantage.errors import StorageError


class JsonLines:
    """A file of one JSON object a line, each with its `step`, written through at once."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows; NaN and infinities become null, which JSON can say."""
        text = "".join(json.dumps(finite(row), ensure_ascii=False, default=str) + "\n" for row in rows)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise StorageError(
                f"{self.path}: can not be written ({error.strerror}); make room and go on with the same command and "
                f"--out {self.path.parent} --resume auto"
            ) from error

    def drop_after(self, step: int) -> None:
        """Atomically remove rows of later steps, and a line that a kill cut short."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if row["step"] <= step:
                kept.append(line + "\n")
        draft = self.path.with_suffix(".tmp")
        draft.write_text("".join(kept), encoding="utf-8")
        os.replace(draft, self.path)


def finite(value: Any) -> Any:
    """The same structure with None for every float that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def versions() -> dict[str, str]:
    """What a result depends on: vantage, torch, transformers, Python, machine."""
    from vantage import __version__

    found = {"vantage": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for name in ("torch", "transformers", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def git_commit() -> str | None:
    """The commit of the working directory, if it is a git checkout."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


class _Numbers(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("numbers", "")), no_wrap=True, overflow="ellipsis")


class ProgressLine:
    """A live line on a terminal; elsewhere one line every so many steps; nothing if `silent`."""

    def __init__(self, total: int, done: int, every: int = 10, silent: bool = False) -> None:
        self.console = Console(stderr=True, quiet=silent)
        self.silent = silent
        self.live = self.console.is_terminal
        self.total, self.every = total, every
        self.bar = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=6),
            _Numbers(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not self.live,
        )
        self.task = self.bar.add_task("train", total=total, completed=done, numbers="")

    def __enter__(self) -> ProgressLine:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, row: Mapping[str, Any], seconds_left: float) -> None:
        """The numbers of a finished step."""
        if self.silent:
            return
        numbers = describe(row)
        self.bar.update(self.task, completed=row["step"], numbers=numbers)
        if not self.live and (row["step"] % self.every == 0 or row["step"] in (1, self.total)):
            left = f"{int(seconds_left) // 60}:{int(seconds_left) % 60:02d}"
            print(f"step {row['step']}/{self.total}  {numbers}  {left} left", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line above the live one."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def describe(row: Mapping[str, Any]) -> str:
    """Reward, value error, speed and, where there is one, accuracy, in a few words."""
    parts = [f"reward {row['reward/mean']:.3f}"]
    if (error := row.get("value/mae")) is not None and math.isfinite(error):
        parts.append(f"value error {error:.3f}")
    parts.append(f"{row['throughput/tokens_per_second']:,.0f} tokens/s")
    if "eval/accuracy" in row:
        parts.append(f"accuracy {row['eval/accuracy']:.3f}")
    return "  ".join(parts)
