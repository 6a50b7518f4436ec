"""How is a comparison read? One self-contained HTML page with its plots, from comparison.json alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vantage.compare.figures import comparison_plots
from vantage.page import change, count, duration, figure, render, visible, write_page
from vantage.plots import Plot

SECTIONS = (("value", "Value estimate"), ("policy", "Policy"), ("cost", "Cost"))
Found = Mapping[str, Any]
DASH = "–"


def write_comparison_report(found: Found, folder: Path) -> Path:
    """Write `report.html` and `plots/*.png` and `.svg` for the content of a comparison.json; returns the page's path.

    The page makes no request to anywhere: styles and plots are inside it, and it runs no script.
    """
    plots = comparison_plots(found)
    page = _page(found, plots)
    return write_page(folder, page, plots)[0]


def _page(found: Found, plots: Sequence[Plot]) -> str:
    names = found["algorithms_compared"]
    drawn = [name for name in names if found["algorithms"][name]["finished"]]
    return render(
        "compare.html.j2",
        title=visible(f"{', '.join(names)} on {found['configuration']['shared']['task']}"),
        facts=facts(found),
        problems=[visible(problem) for problem in found["problems"]],
        summary=[summary_row(name, found) for name in names],
        target=target_line(found),
        accuracy=[plot for plot in plots if plot.section == "accuracy"],
        sections=[(name, title, chosen) for name, title in SECTIONS if (chosen := _of(plots, name))],
        quality=[quality_row(name, found) for name in names],
        cost=[cost_row(name, found) for name in names],
        differences=[difference_row(entry) for entry in found["differences"]],
        tuning=tuning_rows(found),
        runs=[run_row(cell) for cell in found["cells"]],
        legend=[visible(name) for name in drawn],
        swatches={name: index for index, name in enumerate(drawn)},
        config=_yaml(found["configuration"]),
        made={"versions": {**found["versions"], "git commit": found["git_commit"] or DASH, **_text(found["machine"])}},
    )


def _of(plots: Sequence[Plot], section: str) -> list[Plot]:
    return [plot for plot in plots if plot.section == section]


def _yaml(plain: Any) -> str:
    import yaml

    return visible(str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)))


def _text(plain: Found) -> dict[str, str]:
    return {key: DASH if value is None else str(value) for key, value in plain.items()}


def facts(found: Found) -> list[tuple[str, str]]:
    """What was held equal, for the head of the page."""
    budget, shared, seeds = found["budget"], found["configuration"]["shared"], found["seeds"]
    amount = {"steps": "{:,.0f} steps", "tokens": "{:,.0f} generated tokens", "seconds": "{:,.0f} s of training"}
    said = [
        ("model", str(shared["model"])),
        ("budget of each run", amount[budget["unit"]].format(budget["amount"])),
        ("seeds", ", ".join(map(str, seeds["reporting"]))),
        ("rollouts a step", f"{shared['rollouts_per_step']:,}"),
    ]
    if seeds["tuning"]:
        said.append(("tuning seeds", ", ".join(map(str, seeds["tuning"]))))
    return [(name, visible(value)) for name, value in said]


def shown(interval: Found | None, template: str = "{:.3f}") -> tuple[str, str]:
    """A mean and, below it, its interval, as text."""
    if interval is None:
        return DASH, ""
    low, high = interval["low"], interval["high"]
    return figure(interval["mean"], template), _below(interval, figure(low, template), figure(high, template))


def _below(interval: Found, low: str, high: str) -> str:
    """What stands below a mean."""
    if interval["low"] is None:
        return "one seed"
    return f"{low} to {high}" if interval["std"] else "every seed"


def _mean(found: Found, name: str, key: str) -> Any:
    return found["algorithms"][name]["means"].get(key)


def summary_row(name: str, found: Found) -> dict[str, Any]:
    """Final accuracy, time to target, value quality and cost of an algorithm."""
    entry = found["algorithms"][name]
    reach, reference = entry["to_target"], found["target"]["reference"]
    rate = "" if entry["learning_rate"] is None else f", rate {entry['learning_rate']:g}"
    return {
        "name": visible(name),
        "runs": f"{entry['finished']} of {len(found['seeds']['reporting'])} runs{rate}",
        "final": shown(_mean(found, name, "final_accuracy")),
        "gain": shown(_mean(found, name, "gain"), "{:+.3f}"),
        "seconds": reached(reach and reach["seconds"], duration, reference),
        "tokens": reached(reach and reach["tokens"], count, reference),
        "steps": reached(reach and reach["step"], lambda steps: f"{steps:.0f}", reference),
        "variance": shown(_mean(found, name, "value/variance_reduction")),
    }


def reached(entry: Found | None, unit: Any, reference: str | None) -> tuple[str, str, str]:
    """Median over seeds until the target, or what it is at least, and how many got there."""
    if entry is None or not entry["of"]:
        return DASH, "", ""
    share = (
        "" if entry["share_of_reference"] is None else f"{entry['share_of_reference']:.2f} of {visible(str(reference))}"
    )
    some = f"{entry['reached']} of {entry['of']} seeds"
    if entry["median"] is None:
        return f"> {unit(entry['median_at_least'])}", some, share
    return ("from the start", some, "") if entry["median"] == 0 else (unit(entry["median"]), some, share)


def _measure(interval: Found | None, unit: Any, least: float = 0.0) -> tuple[str, str]:
    if interval is None:
        return DASH, ""
    low, high = interval["low"], interval["high"]
    return unit(interval["mean"]), _below(interval, unit(max(least, low or 0.0)), unit(high))


def quality_row(name: str, found: Found) -> dict[str, Any]:
    """How good the value estimate was, as means over all steps."""
    keys = ("mae", "pearson", "explained_variance", "variance_reduction", "brier_skill")
    row = {key: shown(_mean(found, name, f"value/{key}")) for key in keys}
    norms = {
        key: shown(_mean(found, name, key)) for key in ("grad_norm_mean", "grad_norm_std", "grad_norm_relative_std")
    }
    return {"name": visible(name), **row, **norms}


def cost_row(name: str, found: Found) -> dict[str, Any]:
    """What a run of the algorithm spends."""
    return {
        "name": visible(name),
        "steps": shown(_mean(found, name, "steps"), "{:.0f}"),
        "seconds": _measure(_mean(found, name, "seconds"), duration),
        "per_step": shown(_mean(found, name, "seconds_per_step"), "{:.2f}"),
        "value_share": shown(_mean(found, name, "value_share_of_time"), "{:.1%}"),
        "tokens": _measure(_mean(found, name, "tokens"), count),
        "extra": _measure(_mean(found, name, "tokens_value_extra"), count)[0],
        "filtered": _measure(_mean(found, name, "tokens_filtered"), count)[0],
        "memory": shown(_mean(found, name, "peak_memory_gb"), "{:.2f}"),
    }


def difference_row(entry: Found) -> dict[str, Any]:
    """Ours − theirs over the same seeds."""
    final = entry["final_accuracy"]
    open_ = final is None or final["low"] is None or final["low"] <= 0 <= final["high"]
    better = None if open_ else entry["ours"] if final["mean"] > 0 else entry["theirs"]
    return {
        "pair": visible(f"{entry['ours']} − {entry['theirs']}"),
        "n": "0" if final is None else str(final["n"]),
        "final": shown(final, "{:+.3f}"),
        "seconds": shown(entry["seconds"], "{:+,.1f}"),
        "tokens": _measure(entry["tokens"], change, least=-math.inf),
        "variance": shown(entry["value/variance_reduction"], "{:+.3f}"),
        "steadiness": shown(entry["grad_norm_relative_std"], "{:+.3f}"),
        "says": "open" if better is None else visible(f"{better} is better"),
    }


def tuning_rows(found: Found) -> dict[str, Any] | None:
    """Mean final accuracy of every learning rate for every algorithm, the chosen one marked."""
    tuning = found["tuning"]
    if tuning is None:
        return None
    rows = []
    for name, entry in tuning["algorithms"].items():
        cells = [
            {
                "text": figure(row["accuracy"], "{:.3f}"),
                "note": "" if row["finished"] == row["of"] else f"{row['finished']} of {row['of']} runs",
                "chosen": row["learning_rate"] == entry["chosen"],
            }
            for row in entry["rates"]
        ]
        best = DASH if entry["chosen"] is None else f"{entry['chosen']:g}"
        rows.append({"name": visible(name), "cells": cells, "chosen": best, "edge": entry["at_edge"]})
    seeds = ", ".join(map(str, found["seeds"]["tuning"]))
    return {"grid": [f"{rate:g}" for rate in tuning["grid"]], "rows": rows, "seeds": seeds}


def run_row(cell: Found) -> dict[str, Any]:
    """One run; those that are not finished have their status only."""
    row = {"name": visible(cell["algorithm"]), "seed": cell["seed"], "status": cell["status"], "run": cell["run"]}
    if cell["status"] != "finished":
        return row | {"note": visible(cell["note"] or "not finished")}
    low, high = cell["final_accuracy_low"], cell["final_accuracy_high"]
    interval = "" if low is None or high is None else f"{figure(low, '{:.3f}')} to {figure(high, '{:.3f}')}"
    return row | {
        "start": figure(cell["start_accuracy"], "{:.3f}"),
        "final": (figure(cell["final_accuracy"], "{:.3f}"), interval),
        "steps": cell["steps"],
        "seconds": duration(cell["seconds"]),
        "tokens": count(cell["tokens"]),
        "to_target": _when(cell),
    }


def _when(cell: Found) -> str:
    needed = (cell["to_target"] or {}).get("seconds")
    return "not reached" if needed is None else "from the start" if needed == 0 else duration(needed)


def target_line(found: Found) -> str:
    """What "to target" means here."""
    target = found["target"]
    if target["accuracy"] is None:
        return "There is no target yet: no run is finished."
    why = "as given" if target["why"] == "given" else f"the {target['why']}"
    cost = target["cost"]
    reference = ""
    if cost:
        reference = (
            f" “0.75 of {target['reference']}” means that share of what a whole run of {target['reference']} spends: "
            f"{duration(cost['seconds'])}, {count(cost['tokens'])} tokens, {cost['step']:.0f} steps."
        )
    return visible(
        f"Target: accuracy {target['accuracy']:.3f}, {why}. To target: median over seeds of the first time that the lines "
        f"between evaluations reach it; seeds that never do count as later than all others.{reference}"
    )
