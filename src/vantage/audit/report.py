"""How is an audit read? One self-contained HTML page with its plots, from audit.json alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vantage.audit.figures import audit_plots
from vantage.audit.words import how_sure, percent, rounded
from vantage.page import figure, render, visible, write_page

Found = Mapping[str, Any]
DASH = "–"
FLAG = re.compile(r"(--[a-z-]+ \d+)")
"""A flag with its number, which is not broken at the end of a line."""
TEXTS = {
    "bias": "What is left of E ĝ − ∇J after the factor that fits best, as a share of the gradient's norm: a factor alone "
    "changes the step size, not the direction. What a loss that weighs tokens by sampled lengths does is part of the bias. "
    "What more would take: rollouts after which, at the noise that was measured, a bias of that share would be found, or "
    "excluded if there is none; rough where the gradient itself is not told from its noise.",
    "noise": "Traces of covariances of the gradient, divided by the squared factor, so that gradients of different length "
    "compare. Within and between prompts are shares of a step's variance: the two terms of Proposition 1, by which B rollouts, "
    "m of each prompt, have the covariance Σ_w/B + (m/B)·Σ_b. It is exact for a baseline of the prompt or the prefix.",
    "layers": "The same ratio by layer.",
}  # fmt: skip
HEADINGS = {"bias": "Bias", "noise": "Variance", "layers": "Layers"}


def write_audit_report(found: Found, folder: Path) -> Path:
    """Write `report.html`, `plots/*.png` and `.svg` for the content of an audit.json; returns the page's path."""
    plots = audit_plots(found)
    sections = []
    for key, heading in HEADINGS.items():
        chosen = [plot for plot in plots if plot.section == key]
        if chosen or key == "bias":
            sections.append((key, heading, TEXTS[key], chosen))
    page = render(
        "audit.html.j2",
        title=visible(f"{', '.join(found['algorithms'])} on {_task(found)}"),
        facts=facts(found),
        reading=reading(found),
        rows=[row(index, name, entry, found) for index, (name, entry) in enumerate(found["algorithms"].items())],
        sections=sections,
        config=_yaml(
            {key: found[key] for key in ("settings", "options", "rollouts_per_step", "fill_steps", "reference")}
        ),
        made={"versions": {**found["versions"], "git commit": found["git_commit"] or DASH, **_text(found["machine"])}},
    )
    return write_page(folder, page, plots)[0]


def _task(found: Found) -> str:
    return "the enumerable world" if found["exact"] else str(found["settings"].get("task", "sums"))


def facts(found: Found) -> list[tuple[str, str]]:
    """What was held equal, for the head of the page."""
    said = [("model", str(found["model"])), ("rollouts a step", f"{found['rollouts_per_step']:,}")]
    if found["exact"]:
        return [*said, ("method", "sums over every response")]
    said += [
        ("independent blocks", str(found["blocks"])), ("prompts", f"{found['prompts']:,}"),
        ("rollouts", f"{found['rollouts']:,}"), ("confidence", f"{found['confidence']:.0%}"),
    ]  # fmt: skip
    return [(name, visible(value)) for name, value in said]


def reading(found: Found) -> str:
    """How the numbers were made."""
    if found["exact"]:
        return (
            "Expectations are sums over every group of responses to every prompt, through the trainer's own gradient; nothing "
            "is sampled."
        )
    members, projection = found["reference"]["members"], found["projection"]
    kept = (
        "" if projection["numbers"] == projection["parameters"]
        else f" Gradients of {projection['parameters']:,} numbers are kept as random projections to {projection['numbers']:,}."
    )  # fmt: skip
    return (
        f"Against RLOO over {members} rollouts of a prompt, which is unbiased, on the same rollouts. Intervals are Student's, "
        f"from the jackknife over blocks of prompts; nothing is corrected for the number of algorithms.{kept}"
    )


def row(index: int, name: str, entry: Found, found: Found) -> dict[str, Any]:
    """One algorithm in words and numbers."""
    noise, bias, tokens = entry["noise"], entry["bias"], entry.get("tokens")
    known = noise or {}
    step = (known.get("step") or {}).get("mean")
    sizes = found["rollouts_per_step"]

    def part(key: str, times: int) -> tuple[str, str]:
        value = known.get(key)
        return (DASH, "") if value is None or not step else shown(
            {k: times * value[k] / (sizes * step) for k in ("mean", "low", "high")}, "{:.2f}"
        )  # fmt: skip

    return {
        "index": index,
        "name": visible(name),
        "note": f"{entry['members']} rollout{'s' if entry['members'] != 1 else ''} a prompt",
        "verdict": [(visible(text), place % 2 == 1) for place, text in enumerate(FLAG.split(entry["verdict"]))],
        "aggregation": visible(str(entry["aggregation"])),
        "bias": shown(_percent(bias["share"]), "{:.1f} %"),
        "scale": shown(bias["scale"], "{:.3g}"),
        "takes": takes(entry),
        "to_signal": shown(known.get("to_signal"), "{:.3g}"),
        "rollouts": shown(known.get("at_equal_rollouts"), "{:.2f}"),
        "equal_tokens": shown(known.get("at_equal_tokens"), "{:.2f}"),
        "within": part("within", 1),
        "between": part("between", entry["members"]),
        "tokens": DASH if tokens is None else figure(tokens["rollout"], "{:.1f}"),
        "extra": DASH if tokens is None else figure(tokens["value_extra"], "{:.1f}"),
    }


def _percent(share: Found | None) -> Found | None:
    return None if share is None else {key: 100 * value for key, value in share.items()}


def takes(entry: Found) -> tuple[str, ...]:
    """Rollouts that would say more, by the share of the norm."""
    outlook = entry.get("outlook")
    if outlook is None:
        return DASH, ""
    first, *rest = (
        f"{how_sure(entry)} {rounded(one['rollouts'])} for {percent(one['share'])}" for one in outlook["statements"]
    )
    return first, *rest


def shown(interval: Found | None, template: str) -> tuple[str, str]:
    """A number and, below it, its interval, as text."""
    if interval is None:
        return DASH, ""
    same = interval["low"] == interval["high"]
    below = "" if same else f"{figure(interval['low'], template)} to {figure(interval['high'], template)}"
    return figure(interval["mean"], template), below


def _yaml(plain: Any) -> str:
    import yaml

    return visible(str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)))


def _text(plain: Found) -> dict[str, str]:
    return {key: DASH if value is None else str(value) for key, value in plain.items()}
