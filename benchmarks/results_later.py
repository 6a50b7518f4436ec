"""The part of docs/results.md on algorithms that came after the first comparison, beside those of the first."""

from __future__ import annotations

import json

from common import RESULTS
from results_words import Found, interval
from vantage.compare.statistics import paired_difference

SETS = {
    "later": "with values by tokens",
    "forms": "other forms of `poise_token` and `poise`",
}
"""File's first word and what the section is about."""


BASE = "poise_token"
"""What its other forms are compared with, where it was run on the task under the same budget."""


def later(first: Found) -> list[str]:
    """Sections on what was measured after the first comparison on its task."""
    task = first["configuration"]["shared"]["task"]
    paths = {about: RESULTS / f"{name}-{task}.json" for name, about in SETS.items()}
    return [
        line
        for about, path in paths.items()
        if path.exists()
        for line in section(f"## P1 and P2 on `{task}`, {about}", json.loads(path.read_text()), first)
    ]


def section(title: str, found: Found, first: Found) -> list[str]:
    """Final accuracy and cost of the later algorithms, with differences to the first ones by seed."""
    tuned = found["tuning"] is not None
    rates = "and the same grid of learning rates" if tuned else "and POISE's learning rate for all"
    path = RESULTS / f"later-{first['configuration']['shared']['task']}.json"
    with_base = json.loads(path.read_text()) if path.exists() else None
    base = BASE if not tuned and with_base is not None else None
    extra_column = f" to `{base}` |" if base else ""
    lines = [
        title,
        "",
        f"The same budget (tokens that are generated for values count), seeds and prompts, {rates}; the runs were made later, "
        "beside other load, so seconds are not comparable with those above.",
        "",
        "| algorithm | learning rate | final accuracy | steps | of the tokens for values | of the time | to POISE | to RLOO | "
        f"variance reduction | gradient norm's deviation / mean |{extra_column}",
        "|---" * (11 if base else 10) + "|",
    ]
    for name, row in sorted(found["algorithms"].items(), key=lambda item: -item[1]["means"]["final_accuracy"]["mean"]):
        means = row["means"]
        extra = means["tokens_value_extra"]["mean"] / max(1.0, means["tokens"]["mean"])
        against = [difference(found, name, first, other) for other in ("poise", "rloo")]
        lines.append(
            f"| `{name}` | {row['learning_rate']:g} | {interval(means['final_accuracy'])} | {means['steps']['mean']:.0f} | "
            f"{100 * extra:.0f} % | {100 * means['value_share_of_time']['mean']:.1f} % | {against[0]} | {against[1]} | "
            f"{interval(means['value/variance_reduction'])} | "
            f"{interval(means['grad_norm_relative_std'])} |"
            + (f" {difference(found, name, with_base, base)} |" if base and with_base else "")
        )
    if not tuned:
        return [*lines, ""]
    grid = found["tuning"]["algorithms"]
    edges = [f"`{name}`" for name, row in grid.items() if row["at_edge"]]
    if edges:
        lines += ["", f"Best at an edge of the grid of learning rates: {', '.join(edges)}."]
    return [*lines, ""]


def difference(found: Found, name: str, first: Found, other: str) -> str:
    """Difference of final accuracy over the seeds that both have."""
    ours, theirs = (
        {c["seed"]: c["final_accuracy"] for c in part["cells"] if c["algorithm"] == which and c["seed"] in seeds(part)}
        for part, which in ((found, name), (first, other))
    )
    paired = paired_difference(ours, theirs)
    return "–" if paired is None else interval(paired.as_dict(), True)


def seeds(part: Found) -> list[int]:
    return list(part["seeds"]["reporting"])
