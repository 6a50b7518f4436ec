"""Which runs a comparison takes, on which seeds, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from vantage.compare import plan
from vantage.compare.plan import NO_STEP_LIMIT, workload
from vantage.errors import UserError
from vantage.estimators.grpo import Grpo
from vantage.workload import PromptStream


def test_every_algorithm_runs_at_every_seed_and_seeds_are_outermost() -> None:
    cells = plan(["poise", "grpo"], seeds=2, out="c").cells()
    assert [cell.path for cell in cells] == [
        Path("c/cells/poise-seed0"), Path("c/cells/grpo-seed0"), Path("c/cells/poise-seed1"), Path("c/cells/grpo-seed1"),
    ]  # fmt: skip
    assert [(c.config.algo.name, c.config.seed, c.config.resume) for c in cells[:2]] == [
        ("poise", 0, "auto"),
        ("grpo", 0, "auto"),
    ]


def test_runs_differ_in_algorithm_seed_and_folder_only() -> None:
    first, *others = plan(["poise", Grpo(scale="none")], seeds=3, seed=5, temperature=0.9, out="c").cells()
    assert [c.seed for c in (first, *others)] == [5, 5, 6, 6, 7, 7]
    for cell in others:
        same = dataclasses.replace(cell.config, algo=first.config.algo, seed=5, out=first.config.out)
        assert same == first.config
    assert others[0].config.algo == Grpo(scale="none")


def test_algorithms_of_one_seed_read_one_stream_of_prompts() -> None:
    comparison = plan(["poise", "grpo"], seeds=2)
    problems = workload(comparison.base).task.train
    poise, grpo, other, _ = (PromptStream(problems, cell.config.seed).take(0, 50) for cell in comparison.cells())
    assert [p.prompt for p in poise] == [p.prompt for p in grpo]
    assert [p.prompt for p in poise] != [p.prompt for p in other]


@pytest.mark.parametrize(
    ("asked", "steps", "tokens", "seconds", "budget"),
    [
        ({}, 60, None, None, ("steps", 60)),
        ({"steps": 7}, 7, None, None, ("steps", 7)),
        ({"budget_tokens": 1000}, NO_STEP_LIMIT, 1000, None, ("tokens", 1000)),
        ({"budget_seconds": 2.5}, NO_STEP_LIMIT, None, 2.5, ("seconds", 2.5)),
    ],
)
def test_there_is_one_budget(asked: dict[str, Any], steps: int, tokens: Any, seconds: Any, budget: Any) -> None:
    comparison = plan(["poise"], **asked)
    config = comparison.cells()[0].config
    assert (config.steps, config.budget_tokens, config.budget_seconds) == (steps, tokens, seconds)
    assert comparison.budget == budget


def test_tuning_tries_every_rate_on_seeds_that_are_never_reported() -> None:
    comparison = plan(["poise", "grpo"], tune=True, learning_rates=[4.5e-4, 5e-5], tune_seeds=2, seeds=2, out="c")
    cells = comparison.tuning_cells()
    tried = {(c.algorithm, c.config.learning_rate, c.seed) for c in cells}
    assert tried == {(a, r, s) for a in ("poise", "grpo") for r in (5e-5, 4.5e-4) for s in (1000, 1001)}
    assert len(cells) == 8
    assert cells[0].path == Path("c/tuning/poise-lr5e-05-seed1000")
    reported = comparison.cells({"poise": 5e-5, "grpo": 4.5e-4})
    assert {(c.algorithm, c.config.learning_rate, c.seed) for c in reported} == {
        ("poise", 5e-5, 0), ("poise", 5e-5, 1), ("grpo", 4.5e-4, 0), ("grpo", 4.5e-4, 1),
    }  # fmt: skip
    assert not {c.seed for c in cells} & {c.seed for c in reported}
    assert not {c.path for c in cells} & {c.path for c in reported}


@pytest.mark.parametrize("first", [0, 990, 998, 1000, 1001, 1003, 5000])
def test_tuning_seeds_give_way_to_reporting_seeds(first: int) -> None:
    comparison = plan(["poise"], tune=True, seed=first, seeds=4, tune_seeds=3)
    assert len(comparison.tuning_seeds) == 3
    assert not set(comparison.tuning_seeds) & set(comparison.reporting_seeds)


def test_an_algorithm_without_a_tuned_rate_has_no_reported_run() -> None:
    comparison = plan(["poise", "grpo"], tune=True, seeds=1)
    assert [c.algorithm for c in comparison.cells({"grpo": 1e-4})] == ["grpo"]


def test_the_default_grid_stands_around_the_rate_that_the_model_has_anyway() -> None:
    assert plan(["poise"], tune=True).learning_rates == (5e-5, 1.5e-4, 4.5e-4)
    assert plan(["poise"], tune=True, model="some/model").learning_rates == (3.33e-7, 1e-6, 3e-6)
    assert plan(["poise"]).learning_rates == ()
    assert plan(["poise"]).tuning_cells() == []


MISTAKES: list[tuple[list[Any], dict[str, Any], str]] = [
    ([], {}, "--algos is empty; list algorithms with commas in between, such as --algos poise,grpo"),
    (["grop"], {}, "--algos: there is no algorithm 'grop', did you mean 'grpo'?"),
    (["poise", "poise"], {}, "--algos lists poise 2 times; its runs would share their folders"),
    (["poise"], {"steps": 3, "budget_seconds": 1.0}, "--steps and --budget-seconds are 2 budgets; give one of them"),
    (
        ["poise"],
        {"steps": 3, "budget_tokens": 1, "budget_seconds": 1.0},
        "--steps and --budget-tokens and --budget-seconds are 3 budgets; give one of them",
    ),
    (["poise"], {"seeds": 0}, "--seeds is 0, it must be greater than 0"),
    (["poise"], {"tune": True, "tune_seeds": 0}, "--tune-seeds is 0, it must be greater than 0"),
    (["poise"], {"tune_seeds": 2}, "--tune-seeds is a setting of the tuning; add --tune or leave it out"),
    (["poise"], {"learning_rates": [1e-4]}, "--learning-rates is a setting of the tuning; add --tune or leave it out"),
    (
        ["poise"],
        {"tune": True, "learning_rate": 1e-4},
        "--learning-rate is 0.0001, but --tune chooses it; give the rates to try as --learning-rates X,Y,Z",
    ),
    (
        ["poise"],
        {"tune": True, "learning_rates": [1e-4, 1e-4]},
        "--learning-rates has one value, which is nothing to choose from; give two or more",
    ),
    (
        ["poise"],
        {"tune": True, "learning_rates": [1e-4, -1.0]},
        "--learning-rates has -1, every learning rate must be a number greater than 0",
    ),
    (
        ["poise"],
        {"tune": True, "learning_rates": [1e-4, float("nan")]},
        "--learning-rates has nan, every learning rate must be a number greater than 0",
    ),
    (
        ["poise"],
        {"tune": True, "learning_rates": [1e-4, 1.00000001e-4]},
        "--learning-rates has values that agree in six digits; give different ones",
    ),
    (["poise"], {"target": 1.5}, "--target is 1.5, it is an accuracy and must be in (0, 1]"),
    (
        ["poise"],
        {"eval_problems": 0},
        "--eval-problems is 0: a comparison needs accuracy on held-out problems; leave it out",
    ),
    (["poise"], {"resume": "auto"}, "--resume is set by the comparison for each of its runs; leave it out"),
    (["poise"], {"budget_tokens": 0}, "--budget-tokens is 0, it must be greater than 0"),
    (
        ["poise", "grpo"],
        {"rollouts_per_step": 100},
        "--rollouts-per-step is 100, which whole groups can not fill alike (poise 100, grpo 96); give a multiple of 8",
    ),
    (
        ["poise", "grpo"],
        {"prompts_per_step": 10},
        "--prompts-per-step 10 gives a step different numbers of rollouts (poise 20, grpo 80); "
        "give --rollouts-per-step instead",
    ),
    (
        ["poise", "grpo"],
        {"rollouts_per_prompt": 1},
        "--rollouts-per-prompt is 1, poise compares rollouts of a prompt: at least 2",
    ),
]


@pytest.mark.parametrize(("algos", "asked", "message"), MISTAKES, ids=[message[:40] for *_, message in MISTAKES])
def test_a_mistake_is_one_line_that_names_the_flag(algos: list[Any], asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(algos, **asked)
    assert str(caught.value) == message


def test_prompts_per_step_are_fine_where_all_groups_are_alike() -> None:
    cells = plan(["rloo", "grpo"], prompts_per_step=4).cells()
    assert {c.config.prompts * c.config.group_size for c in cells} == {32}
