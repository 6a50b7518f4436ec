"""The page of a comparison: every table and plot, nothing from outside, text that is text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.compare.made import MadeRuns
from tests.test_report import Page
from vantage.compare import Outcome, compare
from vantage.compare.plan import Cell
from vantage.compare.report import write_comparison_report
from vantage.estimators.grpo import Grpo
from vantage.estimators.poise import Poise


def accuracy(cell: Cell) -> float:
    """poise ends above dapo, seeds differ a little, the middle learning rate is the best."""
    base = {"poise": 0.8, "grpo": 0.6, "dapo": 0.7}[cell.algorithm]
    return base + 0.01 * (cell.seed % 10) + (0.05 if cell.config.learning_rate == 2e-4 else 0.0)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    out = tmp_path_factory.mktemp("c") / "c"
    return compare(
        ["poise", "grpo", "dapo"], runner=MadeRuns(accuracy, steps=12), silent=True, out=out, seeds=3, steps=12,
        tune=True, learning_rates=[1e-4, 2e-4, 3e-4],
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(outcome: Outcome) -> Page:
    return Page(outcome.report)


def test_every_table_is_there(page: Page) -> None:
    sections = {attributes.get("id") for tag, attributes in page.tags if tag == "section"}
    assert sections == {"accuracy", "differences", "value", "policy", "cost", "tuning", "runs", "configuration"}
    heads = re.findall(r"<thead><tr><th>(\w+)</th>", page.source)
    assert heads == ["Algorithm", "Pair", "Algorithm", "Algorithm", "Algorithm", "Algorithm", "Algorithm"]
    for column in ("Final accuracy", "Time to target", "Tokens to target", "Steps to target", "Variance removed",
                   "Training time", "Absolute error", "Correlation", "Memory, GB", "Thrown away", "Chosen",
                   "Deviation over mean"):  # fmt: skip
        assert f">{column}</th>" in page.source


def test_every_plot_is_there_with_a_caption_and_as_a_picture(outcome: Outcome, page: Page) -> None:
    names = {
        "accuracy_step", "accuracy_tokens", "accuracy_seconds", "final_accuracy", "differences", "variance_reduction",
        "value_error", "grad_norm", "entropy", "time",
    }  # fmt: skip
    assert {path.stem for path in (outcome.out / "plots").glob("*.png")} == names
    assert page.count("figure") == page.count("figcaption") == len(names)


def test_the_numbers_of_the_page_are_those_of_the_results(outcome: Outcome, page: Page) -> None:
    text = " ".join(page.text.split())
    final = outcome.results["algorithms"]["poise"]["means"]["final_accuracy"]
    # Seeds 0, 1, 2 at the chosen rate: 0.85, 0.86, 0.87; half width 4.302653 × 0.01 / √3 = 0.024841.
    assert final["mean"] == pytest.approx(0.86)
    assert "0.8600.835 to 0.885" in text
    assert "poise − dapo30.100" in text.replace("+", "")
    assert "poise is better" in text
    assert "Target: accuracy 0.760, the mean final accuracy of dapo" in text
    assert "tuning seeds 1000" in text
    assert "budget of each run 12 steps" in text


def test_the_chosen_learning_rate_is_marked(page: Page) -> None:
    chosen = re.findall(r'<td class="num chosen">([\d.]+)', page.source)
    assert chosen == ["0.850", "0.650", "0.750"]
    assert "edge of the grid" not in page.text


def test_the_page_asks_for_nothing_outside_itself_and_runs_no_script(page: Page) -> None:
    for _, attributes in page.tags:
        for name in ("src", "srcset", "action", "data", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
        link = attributes.get("href") or "#"
        assert link.startswith("#") or re.fullmatch(r"cells/\w+-seed\d/report\.html", link)
        assert not any(name.startswith("on") for name in attributes)
    assert not page.count("script") + page.count("link") + page.count("iframe") + page.count("img")
    assert not re.search(r"@import|url\((?!#)", page.source)
    assert any("default-src 'none'" in (attributes.get("content") or "") for _, attributes in page.tags)


def test_plots_follow_the_theme_and_ids_are_unique(page: Page) -> None:
    assert "prefers-color-scheme: dark" in page.source
    body = page.source.split("</style>")[1]
    assert not re.search(r"(?:fill|stroke): #(?!fff)", body)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_page_comes_from_the_json_alone(outcome: Outcome, tmp_path: Path) -> None:
    found = json.loads((outcome.out / "comparison.json").read_text())
    again = write_comparison_report(found, tmp_path / "again")
    assert again.read_text() == outcome.report.read_text()


def small(outcome: Outcome, tmp_path: Path, **changes: Any) -> Page:
    found = {**json.loads((outcome.out / "comparison.json").read_text()), **changes}
    return Page(write_comparison_report(found, tmp_path / "page"))


def test_hostile_names_and_notes_are_text_not_markup(outcome: Outcome, tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    assert attack in (found := small(outcome, tmp_path, problems=[attack])).text
    assert not found.count("script")


def test_a_comparison_without_a_finished_run_still_has_a_page(tmp_path: Path) -> None:
    from vantage.compare import plan
    from vantage.compare.results import results

    found = results(plan(["poise", "grpo"], out=tmp_path), {str(tmp_path / "cells" / "grpo-seed0"): "no memory"}, None)
    page = Page(write_comparison_report(found, tmp_path / "page"))
    assert "grpo seed 0 failed: no memory" in page.text
    assert "There is no target yet" in page.text
    assert not page.count("figure")


def test_variants_of_one_algorithm_are_told_apart_by_their_names(tmp_path: Path) -> None:
    variants = {"poise": Poise(), "wide": Poise(reasoning_window=40), "grpo": Grpo()}

    def accuracy(cell: Cell) -> float:
        assert cell.config.algo == variants[cell.algorithm]
        return {"poise": 0.6, "wide": 0.7, "grpo": 0.5}[cell.algorithm]

    outcome = compare(variants, runner=MadeRuns(accuracy), silent=True, out=tmp_path / "c", seeds=2, steps=4)
    found = {name: row["means"]["final_accuracy"]["mean"] for name, row in outcome.results["algorithms"].items()}
    assert found == pytest.approx({"poise": 0.6, "wide": 0.7, "grpo": 0.5})
    assert outcome.results["configuration"]["options"]["wide"]["reasoning_window"] == 40
    assert outcome.results["configuration"]["options"]["poise"]["reasoning_window"] == 10


def test_one_seed_says_that_it_has_no_interval(tmp_path: Path) -> None:
    outcome = compare(["grpo"], runner=MadeRuns(), silent=True, out=tmp_path / "c", seeds=1, steps=4)
    page = Page(outcome.report)
    assert "one seed" in page.text
    assert "one seed says nothing about the spread over seeds" in page.text
    assert "differences" not in {attributes.get("id") for _, attributes in page.tags}
