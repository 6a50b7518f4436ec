"""What a run ends with: accuracy before and after, how long it took, where everything lies, what to try next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vantage.config import TrainConfig


@dataclass(frozen=True)
class Accuracy:
    """A share with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Summary:
    """The end of a run."""

    run: str
    before: Accuracy | None
    after: Accuracy | None
    gain: Accuracy | None
    seconds: float
    """Training time of this process; after a resume, only since then."""
    tokens: float
    report: str
    model: str
    task: str
    flags: str
    """The flags besides `--task` that an evaluation needs, if any."""

    @staticmethod
    def of(run: Path, config: TrainConfig, rows: Sequence[Mapping[str, Any]], seconds: float, report: Path) -> Summary:
        """From the rows of metrics.jsonl."""
        evaluated = [r for r in rows if r.get("eval/accuracy") is not None]
        before = _accuracy(evaluated[0]) if evaluated and evaluated[0]["step"] == 0 else None
        after = _accuracy(evaluated[-1]) if evaluated and evaluated[-1]["step"] > 0 else None
        gain = difference(before, after) if before and after else None
        tokens = sum(r.get("tokens/generated") or 0 for r in rows)
        return Summary(
            str(run),
            before,
            after,
            gain,
            seconds,
            tokens,
            str(report),
            str(run / "model"),
            config.eval_task or config.task,
            evaluation_flags(config),
        )

    def as_dict(self) -> dict[str, Any]:
        """For summary.json."""
        return asdict(self)

    def text(self) -> str:
        """For people."""
        lines = [""]
        if self.before and self.after and self.gain:
            lines.append(f"accuracy   {self.before}  →  {self.after}   gain {self.gain.mean:+.3f} "
                         f"[{self.gain.low:+.3f}, {self.gain.high:+.3f}] (95 %)")  # fmt: skip
        lines += [
            f"time       {self.seconds:.0f} s, {self.tokens:,.0f} tokens generated",
            f"report     {self.report}",
            f"samples    {Path(self.run) / 'samples.jsonl'}",
            f"model      {self.model}",
            f"next       vantage eval {self.run} --task {shlex.quote(self.task)} {self.flags}--k 8",
        ]
        return "\n".join(lines)


def _accuracy(row: Mapping[str, Any]) -> Accuracy:
    return Accuracy(*(float(row[f"eval/accuracy{suffix}"]) for suffix in ("", "_low", "_high")))


def difference(before: Accuracy, after: Accuracy) -> Accuracy:
    """Gain with a 95 % interval from both half-widths in quadrature (as if on independent problems: too wide, if anything)."""
    half = math.hypot((before.high - before.low) / 2, (after.high - after.low) / 2)
    gain = after.mean - before.mean
    return Accuracy(gain, gain - half, gain + half)


def evaluation_flags(config: TrainConfig) -> str:
    """Rewards, columns, templates and length with which `vantage eval` measures as training did; empty, or ends in a space."""
    from vantage.tasks import task_specs, usual_length
    from vantage.tasks.readers import is_file_spec

    specs = task_specs(config.eval_task) if config.eval_task else []
    words: list[str] = []
    # Of other tasks, `vantage eval --reward` would replace the verifiers that they bring.
    if all(map(is_file_spec, specs)):
        words += [word for spec in config.reward for word in ("--reward", spec)]
    if any(is_file_spec(spec) and spec != config.task for spec in specs):
        words += ["--rows", "all"]
    columns = {"prompt_column": config.prompt_column} if config.prompt_column != "prompt" else {}
    columns |= {name: value for name, value in config.data_options.items() if name != "hold_out"}
    for name, value in columns.items():
        words += [f"--{name.replace('_', '-')}", value]
    if config.chat_template != "auto":
        words += ["--chat-template", config.chat_template]
    if config.enable_thinking is not None:
        words += ["--enable-thinking", str(config.enable_thinking).lower()]
    if config.max_new_tokens and {usual_length(spec) for spec in specs or [config.task]} != {config.max_new_tokens}:
        words += ["--max-new-tokens", str(config.max_new_tokens)]
    return "".join(f"{shlex.quote(word)} " for word in words)
