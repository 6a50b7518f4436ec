"""The pages in a real browser: nothing in the console, nothing asked of a network, nothing that sticks out, light and dark."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import STICKING_OUT, Browser, check_page
from tests.compare.made import MadeRuns, rows_of, write_run
from tests.lab.made import made_lab
from vantage.audit.report import write_audit_report
from vantage.audit.words import verdict
from vantage.compare import compare, plan
from vantage.compare.report import write_comparison_report
from vantage.lab.report import write_lab_report
from vantage.plots import Plot
from vantage.report import write_report


def about(mean: float, spread: float = 0.1) -> dict[str, float]:
    return {"mean": mean, "low": mean * (1 - spread), "high": mean * (1 + spread)}


def noise(ratio: float) -> dict[str, Any]:
    keys = ("step", "to_signal", "at_equal_rollouts", "at_equal_tokens", "within", "between")
    predicted = [{"members": m, **about(0.5 + m / 16)} for m in (1, 2, 4, 8, 16)]
    return {**{key: about(ratio) for key in keys}, "predicted": predicted}


def audited() -> dict[str, Any]:
    """What audit.json holds, with long names and every kind of verdict."""
    entries = {}
    for place, name in enumerate(("rloo", "poise_token with a rather long name of its own", "vineppo", "ppo")):
        share = None if place == 3 else {"mean": 0.1 * place, "low": 0.08 * place, "high": 0.2 * place + 0.005}
        bias = {
            "share": share,
            "scale": None if place == 3 else about(1 - 0.1 * place),
            "found": place == 1,
            "resolved": place < 3,
        }
        layers = [
            {"name": layer, "bias": bias, "noise": noise(1 + place)} for layer in ("embeddings", "block 0", "rest")
        ]
        entry = {
            "algorithm": "rloo", "members": 2, "aggregation": "seq-mean-token-sum-norm", "bias": bias, "layers": layers,
            "noise": noise(1 + place) if place < 3 else None, "tokens": {"rollout": 31.5, "value_extra": 100.0 * place},
        }  # fmt: skip
        statements = [
            {"share": s, "blocks": 4000, "rollouts": 2_048_000} for s in ((0.1, 0.01) if place == 3 else (0.01,))
        ]
        entry["outlook"] = {"sure": place != 2, "statements": statements} if place >= 2 else None
        entries[name] = {**entry, "verdict": verdict(entry, 0.01, 0.95, exact=False)}
    return {
        "exact": False, "model": "tiny", "settings": {"task": "sums"}, "rollouts_per_step": 256, "fill_steps": 10,
        "tolerance": 0.01, "confidence": 0.95, "options": {}, "algorithms": entries, "reference": {"members": 16},
        "projection": {"parameters": 800_000, "numbers": 8192}, "blocks": 16, "prompts": 512, "rollouts": 8192,
        "versions": {"vantage": "0.1.0"}, "git_commit": "a" * 40, "machine": {"cores": 2, "threads": None},
    }  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A page of each kind; its plots as files take most of the time and have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plot, "save", lambda plot, stem: None)
        yield made_pages(tmp_path_factory)


def made_pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of all kinds of pages."""
    folder = tmp_path_factory.mktemp("pages")
    outcome = compare(
        ["poise", "grpo", "reinforce"], runner=MadeRuns(lambda cell: 0.6 + 0.02 * cell.seed), silent=True, seeds=2, steps=4,
        out=folder / "comparison", learning_rates=[1e-4, 3e-4], tune=True,
    )  # fmt: skip
    run = plan(["poise"], seeds=1, steps=8, out=folder / "runs").cells()[0]
    write_run(dataclasses.replace(run, path=folder / "run"), rows_of(0.7, steps=8))
    text = "x" * 400 + " and a <b>tag</b>\n" + "word " * 200
    sample = {"step": 4, "prompt": text, "response": text, "reward": 1.0, "value": 0.5, "advantage": 0.5, "length": 900}
    (folder / "run" / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    other = outcome.out / outcome.results["cells"][0]["run"]
    return {
        "comparison": outcome.report,
        "run": write_report([folder / "run"]).html,
        "runs": write_report([folder / "run", other], folder / "two").html,
        "audit": write_audit_report(audited(), folder / "audit"),
        "lab": write_lab_report(made_lab(), folder / "lab"),
    }


@pytest.mark.parametrize("kind", ["comparison", "run", "runs", "audit", "lab"])
def test_a_page_opens_cleanly_at_any_width_light_and_dark(browser: Browser, pages: dict[str, Path], kind: str) -> None:
    check_page(browser, pages[kind])


def test_no_table_of_eleven_algorithms_has_to_be_scrolled_sideways(browser: Browser, tmp_path: Path) -> None:
    """The committed comparison of all algorithms, whose differences in tokens go into the millions."""
    found = json.loads((Path(__file__).parents[1] / "benchmarks" / "results" / "genac-rl.json").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plot, "save", lambda plot, stem: None)
        page = write_comparison_report(found, tmp_path)
    browser.open(page, 1200)
    assert browser.ask("document.querySelectorAll('.table').length") > 4
    assert browser.ask("[...document.querySelectorAll('.table')].every(t => t.scrollWidth <= t.clientWidth)") is True
    browser.open(page, 500)
    assert browser.ask("[...document.querySelectorAll('.table')].every(t => t.scrollWidth <= t.clientWidth)") is False


def test_the_check_would_see_what_sticks_out_and_what_asks_the_network(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<body><div style='width:2000px'>wide</div><img src='none.png'><script>console.error('no')</script>"
    )
    browser.open(page, 800)
    assert browser.ask(STICKING_OUT)
    assert [url.rpartition("/")[2] for url in browser.requests()] == ["bad.html", "none.png"]
    assert any("no" in text for text in browser.complaints())
