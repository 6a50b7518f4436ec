"""How did a run go? One self-contained HTML page, and the same plots as PNG files, from one or more run directories."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vantage.errors import UserError
from vantage.page import figure, render, visible, write_page
from vantage.plots import Plot, number, points, run_plots
from vantage.runfiles import read_config, read_metrics, read_samples

SECTIONS = (
    ("learning", "Learning"),
    ("value", "Value estimate"),
    ("policy", "Policy"),
    ("completions", "Completions"),
    ("time", "Time"),
    ("algorithm", "Algorithm"),
)
MAX_SAMPLES = 40
"""Completions shown in a report, over all runs."""
MAX_TEXT = 6000
"""Characters of a prompt or response that are shown; the middle of a longer one is left out."""


@dataclass(frozen=True)
class ReportFiles:
    """What `write_report` wrote."""

    html: Path
    plots: tuple[Path, ...]


@dataclass(frozen=True)
class Accuracy:
    """A held-out evaluation with its 95 % interval, where the run recorded one."""

    step: int
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class SampleGroup:
    """Completions of one step that the report shows, ready to print, and how many the run saved there."""

    step: int
    rows: list[dict[str, Any]]
    total: int


@dataclass(frozen=True)
class RunView:
    """One run as the page shows it."""

    label: str
    model: str
    task: str
    algo: str
    seed: str
    steps: int
    steps_planned: int | None
    before: Accuracy | None
    after: Accuracy | None
    seconds: float | None
    tokens: float | None
    tokens_extra: float | None
    variance_reduction: float | None
    samples: list[SampleGroup]
    config: str
    versions: dict[str, str]
    metrics: list[dict[str, Any]]

    @property
    def gain(self) -> float | None:
        """Accuracy after training minus accuracy before."""
        return self.after.value - self.before.value if self.before and self.after else None


def write_report(runs: Sequence[Path], out: Path | None = None) -> ReportFiles:
    """Write `report.html` and `plots/*.png` and `.svg` for `runs`; several runs share axes, one colour each.

    The page makes no request to anywhere: styles and plots are inside it, and it runs no script.

    Args:
        runs: run directories.
        out: folder to write to. Default: the run's own folder, or ./report for several runs.

    Raises:
        UserError: no run given, a folder that is no run, or an `out` that cannot be a folder; nothing is written.
    """
    if not runs:
        raise UserError("run: none given; name at least one folder that `vantage train` wrote")
    folder = out if out is not None else runs[0] if len(runs) == 1 else Path("report")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: {folder} is a file; give a folder to write the report to")
    per_step = max(1, MAX_SAMPLES // (2 * len(runs)))
    views = [_view(run, label, per_step) for run, label in zip(runs, _labels(runs))]
    plots = run_plots([(view.label, view.metrics) for view in views])
    page = _page(views, plots)

    html, images = write_page(folder, page, plots)
    return ReportFiles(html, images)


def _labels(runs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart: `grpo`, or `grpo/seed-0` where that is not enough."""
    parts = [run.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        labels = [visible("/".join(path[-depth:])) for path in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{path[-1]} ({index})" for index, path in enumerate(parts, start=1)]


def _view(run: Path, label: str, samples_per_step: int) -> RunView:
    config, metrics = read_config(run), read_metrics(run)
    versions = _versions(config)
    before, after = _accuracies(metrics)
    steps = [int(step) for row in metrics if (step := number(row.get("step"))) is not None]
    planned = number(config.get("steps"))
    recent = points(metrics, "value/variance_reduction")[1][-10:]
    return RunView(
        label=label,
        model=_name(config.get("model")),
        task=_name(config.get("task")),
        algo=_name(config.get("algo")),
        seed=_name(config.get("seed")),
        steps=max(steps, default=0),
        steps_planned=None if planned is None else int(planned),
        before=before,
        after=after,
        seconds=_total(metrics, "time/step"),
        tokens=_total(metrics, "tokens/generated"),
        tokens_extra=_total(metrics, "tokens/value_extra"),
        variance_reduction=sum(recent) / len(recent) if recent else None,
        samples=_sample_groups(read_samples(run), samples_per_step),
        config=_yaml(config),
        versions=versions,
        metrics=metrics,
    )


def _name(setting: Any) -> str:
    """A setting in a word: a nested one (an algorithm with its options) by its name, FILE.py:CLASS by its class."""
    if isinstance(setting, dict):
        setting = next((setting[key] for key in ("name", "type") if key in setting), next(iter(setting), None))
    return "–" if setting is None else visible(str(setting).rsplit(".py:", 1)[-1])


def _yaml(config: dict[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100))


def _total(metrics: Sequence[Mapping[str, Any]], key: str) -> float | None:
    values = [value for row in metrics if (value := number(row.get(key))) is not None]
    return sum(values) if values else None


def _versions(config: dict[str, Any]) -> dict[str, str]:
    """What the run was made with, taken out of its configuration: that is no setting."""
    versions = config.pop("versions", None)
    found = dict(versions) if isinstance(versions, dict) else {}
    if commit := config.pop("git_commit", None):
        found["git commit"] = commit
    return {str(key): visible(str(value)) for key, value in found.items()}


def _accuracies(metrics: Sequence[Mapping[str, Any]]) -> tuple[Accuracy | None, Accuracy | None]:
    """The evaluation before training (step 0) and the last one after a step."""
    found = []
    for row in metrics:
        step, value = number(row.get("step")), number(row.get("eval/accuracy"))
        if step is not None and value is not None:
            low, high = number(row.get("eval/accuracy_low")), number(row.get("eval/accuracy_high"))
            found.append(Accuracy(int(step), value, low, high))
    before = next((accuracy for accuracy in found if accuracy.step == 0), None)
    after = next((accuracy for accuracy in reversed(found) if accuracy.step > 0), None)
    return before, after


def _sample_groups(samples: Sequence[Mapping[str, Any]], limit: int) -> list[SampleGroup]:
    """Up to `limit` completions of the first and of the last sampled step."""
    by_step: dict[int, list[Mapping[str, Any]]] = {}
    for sample in samples:
        by_step.setdefault(int(number(sample.get("step")) or 0), []).append(sample)
    steps = sorted({min(by_step), max(by_step)}) if by_step else []
    return [
        SampleGroup(step, [_sample_row(sample) for sample in by_step[step][:limit]], len(by_step[step]))
        for step in steps
    ]


def _sample_row(sample: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "prompt": _messages(sample.get("prompt")),
        "response": _shortened(_text(sample.get("response"))),
        "reward": figure(sample.get("reward"), "{:g}"),
        "value": figure(sample.get("value"), "{:.3f}"),
        "advantage": figure(sample.get("advantage"), "{:+.3f}"),
        "length": figure(sample.get("length"), "{:,.0f}"),
        "finish_reason": visible(str(sample.get("finish_reason") or "–")),
    }


def _messages(prompt: Any) -> list[tuple[str, str]]:
    """(role, text) of each message of a chat; a plain prompt is one text without a role."""
    if isinstance(prompt, list) and all(isinstance(message, dict) for message in prompt):
        return [
            (visible(str(message.get("role", ""))), _shortened(_text(message.get("content")))) for message in prompt
        ]
    return [("", _shortened(_text(prompt)))]


def _text(content: Any) -> str:
    """Text as it is, the text parts of multi-part content joined, anything else as JSON."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    return "" if content is None else json.dumps(content, ensure_ascii=False)


def _shortened(text: str) -> str:
    """Visible text without the middle of what is too long; the end stays, since answers stand there."""
    if len(text) > MAX_TEXT:
        head, tail = text[: MAX_TEXT * 2 // 3], text[-MAX_TEXT // 3 :]
        text = f"{head}\n[… {len(text) - len(head) - len(tail):,} characters left out …]\n{tail}"
    return visible(text)


def _page(views: Sequence[RunView], plots: Sequence[Plot]) -> str:
    sections = [(name, title, [plot for plot in plots if plot.section == name]) for name, title in SECTIONS]
    return render(
        "report.html.j2",
        title=_title(views),
        runs=views,
        single=views[0] if len(views) == 1 else None,
        sections=[section for section in sections if section[2]],
        same={name: len({getattr(view, name) for view in views}) == 1 for name in ("model", "task")},
    )


def _title(views: Sequence[RunView]) -> str:
    """`poise on sums`, with every algorithm and task that occurs."""
    algos, tasks = (", ".join(dict.fromkeys(names)) for names in zip(*((view.algo, view.task) for view in views)))
    return f"{algos} on {tasks}"
