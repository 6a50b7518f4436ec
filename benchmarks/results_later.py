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
    lines = [
        title,
        "",
        "The same budget (tokens that are generated for values count), seeds, prompts and grid; the runs were made later, "
        "beside other load, so seconds are not comparable with those above.",
        "",
        "| algorithm | learning rate | final accuracy | steps | of the tokens for values | to POISE | to RLOO | variance "
        "reduction | gradient norm's deviation / mean |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in sorted(found["algorithms"].items(), key=lambda item: -item[1]["means"]["final_accuracy"]["mean"]):
        means = row["means"]
        extra = means["tokens_value_extra"]["mean"] / max(1.0, means["tokens"]["mean"])
        against = [difference(found, name, first, other) for other in ("poise", "rloo")]
        lines.append(
            f"| `{name}` | {row['learning_rate']:g} | {interval(means['final_accuracy'])} | {means['steps']['mean']:.0f} | "
            f"{100 * extra:.0f} % | {against[0]} | {against[1]} | {interval(means['value/variance_reduction'])} | "
            f"{interval(means['grad_norm_relative_std'])} |"
        )
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
