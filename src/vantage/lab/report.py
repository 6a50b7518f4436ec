"""How is a lab read? One self-contained HTML page with its plots, which are files too, from lab.json alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vantage.lab.figures import lab_plots, shown_names, visible_name
from vantage.page import count, duration, figure, render, visible, write_page
from vantage.plots import Plot

Found = Mapping[str, Any]
DASH = "–"
SECTIONS = (
    ("quality", "How good they are"), ("shifts", "Out of distribution"), ("ranking", "Ranking and cost"),
    ("ablation", "What a probe needs"),
)  # fmt: skip
COLUMNS = (
    ("mse_corrected", "Squared error"), ("mae", "Absolute error"), ("pearson_corrected", "Correlation"),
    ("spearman", "Spearman"), ("auc", "AUC"), ("brier_skill", "Brier skill"), ("explained_variance", "Explained variance"),
    ("ece", "Calibration error"),
)  # fmt: skip
PART_WORDS = {"all": "all states", "prompt": "prompts", "step": "starts of later steps"}


def write_lab_report(found: Found, folder: Path) -> Path:
    """Write `report.html` and `plots/*.png`, `plots/*.svg` for the content of a lab.json; returns the page's path.

    The page makes no request to anywhere: styles and plots are inside it, and it runs no script.
    """
    plots = lab_plots(found)
    page = _page(found, plots)
    return write_page(folder, page, plots)[0]


def _page(found: Found, plots: Sequence[Plot]) -> str:
    names = shown_names(found)
    return render(
        "lab.html.j2",
        title=visible(f"Values of {found['model']} on {found['task']}"),
        facts=[(what, visible(said)) for what, said in facts(found)],
        problems=[visible(said) for said in warnings(found)],
        sets=[set_row(one) for one in found["sets"]],
        tables=tables(found),
        differences=[difference_row(row) for row in found["differences"] if row["set"] == found["sets"][0]["name"]],
        costs=[cost_row(name, found) for name in names],
        pools=found["pools"],
        sections=[
            (key, heading, chosen) for key, heading in SECTIONS if (chosen := [p for p in plots if p.section == key])
        ],
        legend=[visible(visible_name(name)) for name in names],
        swatches={visible_name(name): index for index, name in enumerate(names)},
        config=_yaml(found["configuration"]),
        made={"versions": {**found["versions"], "git commit": found["git_commit"] or DASH, **_text(found["machine"])}},
    )


def _yaml(plain: Any) -> str:
    import yaml

    return visible(str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)))


def _text(plain: Found) -> dict[str, str]:
    return {key: DASH if value is None else str(value) for key, value in plain.items()}


def facts(found: Found) -> list[tuple[str, str]]:
    """What was held equal, for the head of the page."""
    config = found["configuration"]
    return [
        ("learned from", f"{found['train_rollouts']:,} rollouts, mean reward {found['train_mean']:.3f}"),
        ("continuations of a state", f"{config['continuations']}"),
        ("response limit", f"{found['max_new_tokens']} tokens"),
        ("seed", str(found["seed"])),
        ("took", duration(found["seconds"])),
    ]


def warnings(found: Found) -> list[str]:
    """What to know before believing the numbers."""
    said = []
    for one in found["sets"]:
        spread = one["variance_of_values"]
        if spread is None or spread < 1e-3:
            said.append(
                f"{one['name']}: true values hardly differ (mean {one['mean']:.3f}), so correlations say nothing there."
            )
    if found["quick"]:
        said.append("This was a quick run: few prompts, few continuations, wide intervals.")
    for name, row in found["estimators"].items():
        whole = row["sets"][found["sets"][0]["name"]]["all"]
        if whole["predicted"] < whole["states"]:
            missing = whole["states"] - whole["predicted"]
            said.append(
                f"{visible_name(name)} gave no number for {missing} of {whole['states']} states; metrics leave them out."
            )
    return said


def set_row(one: Found) -> dict[str, str]:
    """A test set in numbers."""
    return {
        "name": visible(one["name"]), "prompts": f"{one['prompts']:,}", "states": f"{one['states']:,}",
        "accuracy": figure(one["accuracy"], "{:.3f}"), "mean": figure(one["mean"], "{:.3f}"),
        "spread": figure(one["variance_of_values"], "{:.4f}"), "noise": figure(one["noise"], "{:.4f}"),
        "tokens": count(one["tokens"]),
    }  # fmt: skip


def tables(found: Found) -> list[dict[str, Any]]:
    """A table of metrics for each test set and part; of a shift for all its states together."""
    made = []
    for index, one in enumerate(found["sets"]):
        for part in ("prompt", "step") if index == 0 else ("all",):
            rows = [metric_row(name, found, one["name"], part) for name in found["estimators"]]
            if any(rows):
                title = f"{one['name']}: {PART_WORDS[part]}"
                heads = [head for _, head in COLUMNS]
                made.append({"title": visible(title), "heads": heads, "rows": [row for row in rows if row]})
    return made


def metric_row(name: str, found: Found, test: str, part: str) -> dict[str, Any] | None:
    """All metrics of an estimator with their intervals; None where it was not measured there."""
    entry = found["estimators"][name]["sets"][test].get(part)
    if entry is None:
        return None
    cells = []
    for key, _ in COLUMNS:
        metric, template = entry["metrics"][key], "{:.4f}" if key == "mse_corrected" else "{:.3f}"
        low, high = figure(metric["low"], template), figure(metric["high"], template)
        cells.append((figure(metric["mean"], template), "" if DASH in (low, high) else f"{low} to {high}"))
    peeks = part != "prompt" and found["estimators"][name]["sees_response"]
    return {"name": visible(visible_name(name)), "note": "sees how it goes on" if peeks else "", "cells": cells}


def difference_row(row: Found) -> dict[str, Any]:
    """Squared error over that of the best."""
    low, high = row["low"], row["high"]
    open_ = low is None or high is None or low <= 0
    return {
        "name": visible(visible_name(row["estimator"])), "best": visible(visible_name(row["best"])),
        "mean": (figure(row["mean"], "{:+.4f}"), f"{figure(low, '{:+.4f}')} to {figure(high, '{:+.4f}')}"),
        "says": "open" if open_ else "worse",
    }  # fmt: skip


def cost_row(name: str, found: Found) -> dict[str, Any]:
    """What a prediction takes."""
    row = found["estimators"][name]
    cost = row["cost"]
    best = next((r for r in row["ranking"] if r["size"] == 4), None)
    return {
        "name": visible(visible_name(name)), "about": visible(row["about"]), "fit": duration(cost["fit_seconds"]),
        "seconds": figure(1000 * cost["seconds_per_state"], "{:.2f} ms"), "tokens": figure(cost["tokens_per_state"], "{:.1f}"),
        "kept": _bytes(cost["kept_bytes"]), "peak": _bytes(cost["peak_bytes"]),
        "outcome": figure(row["sets"][found["sets"][0]["name"]]["outcome"].get("prompt"), "{:.3f}"),
        "top1": DASH if best is None else f"{figure(best['credit'][0], '{:.2f}')}",
    }  # fmt: skip


def _bytes(size: float | None) -> str:
    if size is None:
        return DASH
    return f"{size / 1e6:.2f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"
