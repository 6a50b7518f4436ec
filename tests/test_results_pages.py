"""docs/results.md and docs/choosing.md as they will be once more experiments are there: made-up files beside committed ones."""

from __future__ import annotations

import copy
import importlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
Found = dict[str, Any]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the committed results, which the pages are made from."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    folder = tmp_path / "results"
    shutil.copytree(BENCHMARKS / "results", folder)
    for name in ("results_page", "choosing_page"):
        importlib.import_module(name)
    for module in [module for name, module in sys.modules.items() if name in MODULES]:
        monkeypatch.setattr(module, "RESULTS", folder, raising=False)
    monkeypatch.setattr(sys.modules["results_page"], "CONTROL", folder / "control-rloo-two-rollouts.json")
    return folder


MODULES = {path.stem for path in BENCHMARKS.glob("*.py")}


def read(folder: Path, name: str) -> Found:
    found: Found = json.loads((folder / f"{name}.json").read_text())
    return found


def write(folder: Path, name: str, found: Found) -> None:
    (folder / f"{name}.json").write_text(json.dumps(found))


def renamed(found: Found, names: dict[str, str]) -> Found:
    """Some algorithms of a comparison under other names."""
    made = copy.deepcopy(found)
    made["algorithms"] = {names[name]: row for name, row in found["algorithms"].items() if name in names}
    made["cells"] = [
        {**cell, "algorithm": names[cell["algorithm"]]} for cell in found["cells"] if cell["algorithm"] in names
    ]
    made["differences"] = [
        {**row, "ours": names[row["ours"]], "theirs": names[row["theirs"]]}
        for row in found["differences"]
        if row["ours"] in names and row["theirs"] in names
    ]
    made["tuning"] = None
    return made


def raised(found: Found, name: str, change: float) -> Found:
    """The same comparison where an algorithm ends higher at every seed."""
    made = copy.deepcopy(found)
    for cell in made["cells"]:
        if cell["algorithm"] == name:
            cell["final_accuracy"] += change
    return made


def one_seed(found: Found) -> Found:
    """The first seed alone: means without intervals."""
    made = copy.deepcopy(found)
    made["seeds"]["reporting"] = found["seeds"]["reporting"][:1]
    made["cells"] = [cell for cell in made["cells"] if cell["seed"] in made["seeds"]["reporting"]]
    for row in made["algorithms"].values():
        for mean in row["means"].values():
            if mean is not None:
                mean.update(low=None, high=None, std=None, n=1)
    return made


def section(module: str, name: str) -> str:
    """One part of a page."""
    return "\n".join(getattr(sys.modules[module], name)())


def claim(text: str, words: str) -> str:
    """The row of a table that has some words."""
    return next(line for line in text.splitlines() if words in line)


def p6_of(found: Found) -> Found:
    """A P6 with the paper's order: cross above prompt-only above same-rollout."""
    names = {"poise": "cross", "dapo": "prompt-only", "grpo": "same-rollout"}
    made = raised(raised(renamed(found, names), "cross", 0.3), "prompt-only", 0.3)
    last = {"value/pearson": 0.5, "policy/entropy": 0.1, "completion/length_mean": 30.0}
    made["course"] = {name: [{"last": last}] * 3 for name in made["algorithms"]}
    made["configuration"]["shared"]["learning_rate"] = 1.5e-4
    return made


def test_p6_says_what_its_differences_say_and_one_seed_says_nothing(results: Path) -> None:
    made = p6_of(read(results, "algorithms-sums"))
    write(results, "p6-sums", made)
    text = section("results_values", "p6")
    assert re.search(r"the prompt's states are worse .*\| (holds here|no difference seen) \|", text)
    assert re.search(r"own features are worse .*\| holds here \|", text)
    silent = one_seed(made)
    silent["course"]["cross"] = [{"last": {**silent["course"]["cross"][0]["last"], "value/pearson": None}}]
    write(results, "p6-sums", silent)
    text = section("results_values", "p6")
    assert text.count("one seed says nothing") == 2
    assert "(one seed)" in text
    assert "| – | – |" in text  # no difference to itself, no correlation
    assert "None" not in text


def test_equal_steps_and_g4_say_who_is_told_apart(results: Path) -> None:
    found = read(results, "algorithms-sums")
    steps = raised(renamed(found, {"rloo": "rloo", "dapo": "vineppo-k3-reuse", "poise": "poise"}), "poise", 0.2)
    training = raised(renamed(found, {"grpo": "genac", "rloo": "ppo", "dapo": "vineppo"}), "genac", 0.2)
    for made in (steps, training):
        made["budget"] = {"unit": "steps", "amount": 12}
        made["configuration"]["shared"] |= {"learning_rate": 1.5e-4, "eval_problems": 500}
    write(results, "vineppo-steps-sums", steps)
    write(results, "genac-rl", training)
    told = claim(section("results_values", "steps"), "Beyond the interval")
    assert told.endswith("behind `rloo`: none.")
    assert {"`poise`", "`genac`"} <= set(re.findall(r"`\w+`", told.partition(";")[0]))
    words = sys.modules["results_genac"]
    text = "\n".join(words.g4(training))
    assert claim(text, "`ppo` at equal steps | yes |").endswith("holds here |")
    assert claim(text, "`vineppo` at equal steps | – |").endswith("holds here |")
    text = "\n".join(words.g4(raised(training, "genac", -0.4)))
    assert claim(text, "`ppo` at equal steps").endswith("does not hold here |")


def icc(parsed: bool, better: float) -> Found:
    """What genac_values.py icc writes, with the untaught critic silent."""
    rows = [{"truth": 0.5, "variance": 0.0, "prompt": i} for i in range(8)]
    good, bad = [[0.5 + better / 2]] * 8, [[0.9]] * 8
    silent = [[None]] * 8

    def side(values: list[list[float]]) -> Found:
        both = {"strong": values, "weak": values}
        moved = {"0.1": [[0.2]], "0.9": [[0.8]]}
        return {
            "taught": {"base": dict.fromkeys(both, silent if not parsed else values), "sft": both},
            "reinforced": [{"values": both, "moved": moved}],
        }

    return {
        "states": {"strong": rows, "weak": rows}, "sizes": {"school": 2, "icc_steps": 1, "seeds": 1},
        "rates": {"strong": 0.4, "weak": 0.2}, "temperatures": {"strong": 1.0, "weak": 1.4}, "on": side(good), "off": side(bad),
    }  # fmt: skip


def test_g3_counts_rows_in_which_a_number_could_be_read(results: Path) -> None:
    words = sys.modules["results_genac"]
    said = claim("\n".join(words.g3(icc(parsed=False, better=0.0))), "the facts lower")
    assert "lower in 4 of 4 rows in the mean, beyond the interval in 4; in 2 more no answer could be read" in said
    assert said.endswith("holds here |")
    said = claim("\n".join(words.g3(icc(parsed=True, better=0.9))), "the facts lower")
    assert "lower in 0 of 6 rows" in said
    assert said.endswith("does not hold in every row here |")


def test_counts_tell_the_mean_from_what_is_beyond_the_interval(results: Path) -> None:
    words = sys.modules["results_genac"]
    both, mean, none = (True, True), (True, False), (False, False)
    said = [words.held(rows, "at every size") for rows in ([both, both], [both, mean], [both, none], [])]
    assert said == ["holds here", "holds in the mean only", *["does not hold at every size here"] * 2]
    assert words.counted([both, mean, none], "better at", "sizes") == (
        "better at 2 of 3 sizes in the mean, beyond the interval in 1"
    )


def test_p5_shows_the_first_seed_whole_and_sums_first(results: Path) -> None:
    first = read(results, "p5-sums")
    other = copy.deepcopy(first)
    other["seed"], other["prompts"] = 1, 32
    write(results, "p5-sums-seed1", other)
    write(results, "p5-programs", {**other, "task": "programs", "seed": 0})
    text = section("results_p5", "p5")
    assert text.index("# P5 on `sums`") < text.index("# P5 on `programs`")
    assert f"{first['prompts']} prompts with 16 rollouts each" in text
    assert f"| estimator | seed 0, {first['prompts']} prompts | seed 1, 32 prompts |" in text


def test_a_sampled_x1_without_the_control_has_no_claim(results: Path) -> None:
    nothing = {"share": None, "scale": None, "found": False, "resolved": False}
    row = {"members": 2, "bias": nothing, "noise": None, "verdict": "nothing can be said yet"}
    found = {
        "settings": {"task": "sums"}, "model": "tiny", "blocks": 4, "prompts": 16, "rollouts": 256, "rollouts_per_step": 32,
        "fill_steps": 2, "reference": {"members": 16}, "confidence": 0.95, "algorithms": {"poise, own features": row},
    }  # fmt: skip
    words = sys.modules["results_audit"]
    assert "claim" not in "\n".join(words.x1("sums", found))
    both = {**found, "algorithms": {"poise": row, "poise, own features": row}}
    assert "| – | not resolved" in "\n".join(words.x1("sums", both))


def test_ways_to_read_a_critic_are_told_apart_beyond_the_intervals_only(results: Path) -> None:
    words = sys.modules["results_audit"]

    def claim(expected: tuple[float, float]) -> str:
        ends = {
            "genac": (0.5, 0.7),
            "genac, expected score": expected,
            "genac, mean of 4": (0.2, 0.3),
            "ppo": (0.1, 0.9),
        }
        rows = {
            name: {"noise": {"at_equal_rollouts": {"mean": (low + high) / 2, "low": low, "high": high}}}
            for name, (low, high) in ends.items()
        }
        return words._answers(rows)[-1]

    assert "0.600 (genac), 0.350 (genac, expected score), 0.250 (genac, mean of 4) | holds here" in claim((0.3, 0.4))
    assert "not seen beyond the intervals" in claim((0.3, 0.55))


def test_the_guide_recommends_the_token_probe_while_both_worlds_say_so(results: Path) -> None:
    said = section("choosing_page", "short")
    assert "| nothing in particular | `poise_token` | one rollout a prompt" in said
    assert "on `sums` +0.011 [+0.002, +0.020] over `poise`, nothing ended higher beyond noise" in said
    later = read(results, "later-programs")
    write(results, "later-programs", raised(later, "poise_token", -0.1))
    assert "| nothing in particular | `poise` |" in section("choosing_page", "short")
    (results / "later-programs.json").unlink()
    assert "| nothing in particular | `poise` |" in section("choosing_page", "short")
    assert "on `sums` `poise_token` (+0.011 [+0.002, +0.020]) ended higher" in section("choosing_page", "short")


def test_no_committed_page_has_a_number_that_is_none_or_a_row_that_is_short() -> None:
    for name in ("results", "choosing"):
        text = (BENCHMARKS.parent / "docs" / f"{name}.md").read_text()
        assert not re.search(r"\bNone\b|\bnan\b|\binf\b", text)
        width = None
        for line in text.splitlines():  # every row of a table has the cells of its head
            cells = line.count("|") if line.startswith("|") else None
            assert cells is None or width is None or cells == width, line
            width = cells
