"""What comparison.json and comparison.csv say, against numbers worked out by hand."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.compare.made import MadeRuns, rows_of, write_run
from vantage.compare import Comparison, plan
from vantage.compare.cells import numbers_of
from vantage.compare.plan import Cell
from vantage.compare.report import summary_row
from vantage.compare.results import csv_of, results, tuning_table, write_results
from vantage.compare.words import closing_words

FINAL = {("poise", 0): 0.8, ("poise", 1): 0.7, ("grpo", 0): 0.6, ("grpo", 1): 0.7}


def found_of(comparison: Comparison, runner: MadeRuns, chosen: dict[str, float] | None = None) -> dict[str, Any]:
    for cell in [*comparison.tuning_cells(), *comparison.cells(chosen)]:
        runner(cell, lambda: 0)
    return results(comparison, {}, chosen)


def two_by_two(out: Path, final: dict[tuple[str, int], float] = FINAL, **asked: Any) -> dict[str, Any]:
    algos = list(dict.fromkeys(name for name, _ in final))
    comparison = plan(algos, seeds=2, steps=4, out=out, **asked)
    return found_of(comparison, MadeRuns(lambda cell: final[cell.algorithm, cell.seed]))


# --- one run ---------------------------------------------------------------------------------------------------------


def test_the_numbers_of_a_run_by_hand() -> None:
    found = numbers_of(rows_of(0.8))
    assert (found["start_accuracy"], found["final_accuracy"], found["gain"]) == (0.4, 0.8, pytest.approx(0.4))
    assert (found["final_accuracy_low"], found["final_accuracy_high"]) == (pytest.approx(0.77), pytest.approx(0.83))
    assert (found["steps"], found["seconds"], found["seconds_per_step"]) == (4, 8.0, 2.0)
    assert (found["tokens"], found["tokens_generated"], found["tokens_trained"]) == (400, 400, 400)
    assert found["peak_memory_gb"] == pytest.approx(0.9)
    assert found["time/rollout"] == pytest.approx(2.0)
    assert found["time/forward_backward"] == pytest.approx(4.0)
    assert found["time/value"] == pytest.approx(0.8)
    assert found["time/other"] == pytest.approx(8.0 - 2.0 - 4.0 - 0.8)
    assert found["time/eval"] == 1.5
    assert found["value_share_of_time"] == pytest.approx(0.1)
    # Gradient norms 1, 2, 3, 4: mean 2.5, sample variance 5/3.
    assert found["grad_norm_mean"] == 2.5
    assert found["grad_norm_std"] == pytest.approx((5 / 3) ** 0.5)
    assert found["grad_norm_relative_std"] == pytest.approx((5 / 3) ** 0.5 / 2.5)
    assert found["value/mae"] == pytest.approx(0.4)
    assert found["value/variance_reduction"] == pytest.approx(0.225)


def test_evaluations_carry_what_was_spent_by_then() -> None:
    points = numbers_of(rows_of(0.8))["evaluations"]
    assert [(p["step"], p["tokens"], p["seconds"]) for p in points] == [(0, 0, 0), (2, 200, 4), (4, 400, 8)]
    assert [p["accuracy"] for p in points] == pytest.approx([0.4, 0.6, 0.8])


def test_tokens_that_only_serve_values_are_spent_too() -> None:
    found = numbers_of(rows_of(0.8, **{"tokens/value_extra": 10.0}))
    assert [p["tokens"] for p in found["evaluations"]] == [0, 220, 440]
    assert (found["tokens"], found["tokens_generated"], found["tokens_value_extra"]) == (440, 400, 40)


def test_steps_without_a_number_are_left_out_of_means() -> None:
    rows = rows_of(0.8)
    rows[1]["value/mae"], rows[1]["policy/grad_norm"] = None, None
    rows[2]["value/mae"] = 1.0
    found = numbers_of(rows)
    assert found["value/mae"] == pytest.approx((1.0 + 0.4 + 0.4) / 3)
    assert found["grad_norm_mean"] == 3.0
    assert found["curves"]["value/mae"] == [None, 1.0, 0.4, 0.4]
    assert found["curves"]["step"] == [1, 2, 3, 4]


# --- over seeds ------------------------------------------------------------------------------------------------------


def test_means_over_seeds_have_a_t_interval(tmp_path: Path) -> None:
    final = two_by_two(tmp_path)["algorithms"]["poise"]["means"]["final_accuracy"]
    # 0.8 and 0.7: mean 0.75, sample std 0.1/√2; half width 12.706205 × 0.05 = 0.635310.
    assert (final["n"], final["mean"]) == (2, pytest.approx(0.75))
    assert final["low"] == pytest.approx(0.75 - 0.6353102, abs=1e-6)


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    (entry,) = two_by_two(tmp_path)["differences"]
    assert (entry["ours"], entry["theirs"]) == ("poise", "grpo")
    # Differences 0.2 and 0.0: mean 0.1, half width 12.706205 × (0.1414/√2).
    final = entry["final_accuracy"]
    assert (final["n"], final["mean"]) == (2, pytest.approx(0.1))
    assert final["low"] == pytest.approx(0.1 - 1.2706205, abs=1e-6)
    assert entry["seconds"]["mean"] == 0


def test_every_pair_is_compared_once(tmp_path: Path) -> None:
    final = {(name, seed): 0.5 for name in ("poise", "grpo", "rloo") for seed in (0, 1)}
    pairs = [(d["ours"], d["theirs"]) for d in two_by_two(tmp_path, final)["differences"]]
    assert pairs == [("poise", "grpo"), ("poise", "rloo"), ("grpo", "rloo")]


# --- target ----------------------------------------------------------------------------------------------------------


def test_the_target_is_the_final_accuracy_of_dapo_where_it_is_compared(tmp_path: Path) -> None:
    final = {
        ("poise", 0): 0.8,
        ("poise", 1): 0.8,
        ("dapo", 0): 0.7,
        ("dapo", 1): 0.5,
        ("rloo", 0): 0.45,
        ("rloo", 1): 0.45,
    }
    found = two_by_two(tmp_path, final)
    target = found["target"]
    assert (target["accuracy"], target["reference"]) == (pytest.approx(0.6), "dapo")
    assert target["cost"] == {"step": 4, "tokens": 400, "seconds": 8}
    # poise rises by 0.1 a step from 0.4: two steps of 2 s, that is half of what dapo spends.
    seconds = found["algorithms"]["poise"]["to_target"]["seconds"]
    assert seconds["median"] == pytest.approx(4.0)
    assert seconds["share_of_reference"] == pytest.approx(0.5)
    assert found["cells"][0]["to_target"] == {
        "step": pytest.approx(2.0), "tokens": pytest.approx(200), "seconds": pytest.approx(4),
    }  # fmt: skip
    # dapo: seed 0 gets there at step 4 × 0.2/0.3, seed 1 never: the median is open, and at least the mean with 8 s.
    own = found["algorithms"]["dapo"]["to_target"]["seconds"]
    assert (own["reached"], own["of"], own["median"], own["share_of_reference"]) == (1, 2, None, None)
    assert own["median_at_least"] == pytest.approx((8 * 2 / 3 + 8) / 2)
    never = found["algorithms"]["rloo"]["to_target"]["tokens"]
    assert (never["reached"], never["median"], never["median_at_least"]) == (0, None, 400)


def test_without_dapo_the_target_is_that_of_the_algorithm_that_ends_lowest(tmp_path: Path) -> None:
    target = two_by_two(tmp_path)["target"]
    assert (target["accuracy"], target["reference"]) == (pytest.approx(0.65), "grpo")
    assert target["why"] == "mean final accuracy of grpo, the lowest"


def test_a_target_can_be_given(tmp_path: Path) -> None:
    found = two_by_two(tmp_path, target=0.5)
    assert (found["target"]["accuracy"], found["target"]["reference"]) == (0.5, None)
    assert found["algorithms"]["poise"]["to_target"]["step"]["share_of_reference"] is None


def test_a_target_that_was_there_before_training_is_said_to_be_one(tmp_path: Path) -> None:
    found = two_by_two(tmp_path, {("poise", 0): 0.3, ("poise", 1): 0.3, ("grpo", 0): 0.5, ("grpo", 1): 0.5})
    assert found["problems"] == [
        "the target of 0.300 was there before training in 4 of 4 runs: times to it say nothing; give a higher --target"
    ]
    row = summary_row("grpo", found)
    assert row["seconds"] == ("from the start", "2 of 2 seeds", "")
    said = closing_words(found, tmp_path / "report.html")
    assert "grpo   accuracy 0.500" in said
    assert "after 0.0 s" not in said
    assert two_by_two(tmp_path / "higher", target=0.65)["problems"] == []


# --- tuning ----------------------------------------------------------------------------------------------------------


def tuned(accuracy: dict[float, list[float]], grid: list[float]) -> dict[str, Any]:
    """The tuning row of one algorithm with these final accuracies, one for each tuning seed; None is a failed run."""
    cells = [
        {
            "algorithm": "poise",
            "learning_rate": rate,
            "status": "failed" if a is None else "finished",
            "final_accuracy": a,
        }
        for rate, found in accuracy.items()
        for a in found
    ]
    comparison = plan(["poise"], tune=True, learning_rates=grid, tune_seeds=2)
    table = tuning_table(comparison, cells)
    assert table is not None
    return table["algorithms"]["poise"]


def test_the_best_mean_over_tuning_seeds_is_chosen() -> None:
    row = tuned({1e-4: [0.5, 0.7], 2e-4: [0.6, 0.62], 3e-4: [0.9, 0.2]}, [1e-4, 2e-4, 3e-4])
    assert (row["chosen"], row["at_edge"]) == (2e-4, False)
    assert [r["accuracy"] for r in row["rates"]] == pytest.approx([0.6, 0.61, 0.55])


def test_of_equal_learning_rates_the_smaller_is_chosen_and_edges_are_marked() -> None:
    assert tuned({1e-4: [0.5, 0.5], 2e-4: [0.5, 0.5]}, [1e-4, 2e-4]) == {
        "rates": [
            {"learning_rate": 1e-4, "accuracy": 0.5, "finished": 2, "of": 2},
            {"learning_rate": 2e-4, "accuracy": 0.5, "finished": 2, "of": 2},
        ],
        "chosen": 1e-4,
        "at_edge": True,
    }
    assert tuned({1e-4: [0.4, 0.4], 2e-4: [0.5, 0.5]}, [1e-4, 2e-4])["at_edge"]


def test_a_learning_rate_with_a_failed_run_can_not_win() -> None:
    row = tuned({1e-4: [0.5, 0.5], 2e-4: [0.9, None]}, [1e-4, 2e-4])
    assert row["chosen"] == 1e-4
    assert row["rates"][1] == {"learning_rate": 2e-4, "accuracy": None, "finished": 1, "of": 2}
    assert tuned({1e-4: [None, None], 2e-4: [None, None]}, [1e-4, 2e-4])["chosen"] is None


def test_tuning_and_reporting_never_share_a_run(tmp_path: Path) -> None:
    def final(cell: Cell) -> float:
        if not cell.tuning:
            return 0.5
        return {1e-4: 0.6, 3e-4: 0.9, 9e-4: 0.7}[cell.config.learning_rate or 0]

    comparison = plan(["grpo"], seeds=2, steps=4, tune=True, learning_rates=[1e-4, 3e-4, 9e-4], out=tmp_path)
    found = found_of(comparison, MadeRuns(final), {"grpo": 3e-4})
    assert found["tuning"]["algorithms"]["grpo"]["chosen"] == 3e-4
    assert found["algorithms"]["grpo"]["means"]["final_accuracy"]["mean"] == 0.5  # nothing of 0.9
    assert {c["seed"] for c in found["cells"]} == {0, 1}
    assert {c["seed"] for c in found["tuning"]["cells"]} == {1000}
    assert found["problems"] == []


# --- what a reader must know -----------------------------------------------------------------------------------------


def test_problems_name_what_is_missing_or_doubtful(tmp_path: Path) -> None:
    comparison = plan(["poise", "grpo"], seeds=1, steps=4, tune=True, learning_rates=[1e-4, 3e-4], out=tmp_path)
    tuning = comparison.tuning_cells()
    for cell in tuning:
        if cell.algorithm == "poise":
            write_run(cell, rows_of(0.7 if cell.config.learning_rate == 3e-4 else 0.5))
    grpo_failed = {str(cell.path): "boom" for cell in tuning if cell.algorithm == "grpo"}
    found = results(comparison, grpo_failed, {"poise": 3e-4})
    assert found["problems"] == [
        "grpo seed 1000 at learning rate 0.0001 failed: boom",
        "grpo seed 1000 at learning rate 0.0003 failed: boom",
        "poise seed 0 is not finished",
        "poise was best at learning rate 0.0003, the largest of the grid: a better one may lie beyond it; "
        "widen --learning-rates",
        "grpo has no tuned learning rate, and so no reported run: see its tuning runs",
    ]


def test_runs_of_different_versions_are_pointed_out(tmp_path: Path) -> None:
    comparison = plan(["poise", "grpo"], seeds=1, steps=4, out=tmp_path)
    found_of(comparison, MadeRuns())
    config = comparison.cells()[0].path / "config.yaml"
    config.write_text(config.read_text().replace("2.13.0", "2.12.0"))
    (problem,) = results(comparison, {}, None)["problems"]
    assert problem.startswith("runs were made with different versions of the software")


def test_a_run_without_evaluation_at_its_end_has_no_result(tmp_path: Path) -> None:
    comparison = plan(["poise"], seeds=1, steps=4, out=tmp_path)
    write_run(comparison.cells()[0], rows_of(0.5)[:1])
    found = results(comparison, {}, None)
    assert found["problems"] == ["poise seed 0 failed: the run has no evaluation at its end"]
    assert found["algorithms"]["poise"]["finished"] == 0


# --- files -----------------------------------------------------------------------------------------------------------


def test_json_has_every_raw_number_versions_machine_and_seeds(tmp_path: Path) -> None:
    found = two_by_two(tmp_path)
    write_results(found, tmp_path)
    read = json.loads((tmp_path / "comparison.json").read_text())
    assert read == json.loads(json.dumps(found))
    assert {"versions", "git_commit", "machine", "seeds", "budget", "target", "algorithms", "differences"} <= set(read)
    assert read["seeds"] == {"reporting": [0, 1], "tuning": []}
    assert read["configuration"]["shared"]["temperature"] == 1.0
    assert read["configuration"]["options"]["grpo"]["scale"] == "group"
    assert len(read["cells"]) == 4
    for cell in read["cells"]:
        assert len(cell["evaluations"]) == 3
        assert len(cell["curves"]["policy/grad_norm"]) == 4
        assert cell["learning_rate"] == 1.5e-4
        assert cell["versions"] == {"torch": "2.13.0"}


def test_csv_has_a_row_for_each_run(tmp_path: Path) -> None:
    comparison = plan(["poise", "grpo"], seeds=1, steps=4, tune=True, learning_rates=[1e-4, 3e-4], out=tmp_path)
    found = found_of(comparison, MadeRuns(), {"poise": 1e-4, "grpo": 1e-4})
    rows = list(csv.DictReader(io.StringIO(csv_of(found))))
    assert [(r["purpose"], r["algorithm"], r["seed"]) for r in rows] == [
        ("tuning", "poise", "1000"), ("tuning", "grpo", "1000"), ("tuning", "poise", "1000"), ("tuning", "grpo", "1000"),
        ("report", "poise", "0"), ("report", "grpo", "0"),
    ]  # fmt: skip
    last = rows[-1]
    assert (float(last["final_accuracy"]), float(last["seconds"]), last["status"]) == (0.6, 8.0, "finished")
    assert float(last["seconds_to_target"]) == pytest.approx(8.0)
    assert "evaluations" not in last
