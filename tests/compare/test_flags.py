"""The command line of `vantage compare`: what is understood, and what is said of what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.settings.test_configfile import PLUGIN
from vantage import cli
from vantage.compare import plan
from vantage.compare.flags import parse_compare
from vantage.errors import UserError
from vantage.estimators.grpo import Grpo
from vantage.estimators.poise import Poise


def test_flags_make_the_same_comparison_as_python() -> None:
    line = (
        "--algos poise,grpo --grpo.eps 0.5 --poise.alpha 0.1 --seeds 2 --budget-tokens 5000 --tune "
        "--learning-rates 1e-4,2e-4 --tune-seeds 2 --target 0.7 --out x --seed 3 --temperature 0.9 --reward-range -1 2"
    )
    assert parse_compare(line.split()).comparison == plan(
        [Poise(alpha=0.1), Grpo(eps=0.5)], seeds=2, budget_tokens=5000, tune=True, learning_rates=[1e-4, 2e-4],
        tune_seeds=2, target=0.7, out="x", seed=3, temperature=0.9, reward_range=(-1.0, 2.0),
    )  # fmt: skip


def test_a_comparison_without_settings_is_that_of_python() -> None:
    assert parse_compare(["--algos", "poise,grpo"]).comparison == plan(["poise", "grpo"])


@pytest.mark.parametrize("words", [["--algos", "poise,grpo"], ["--algos", "poise", "grpo"], ["--algos=poise, grpo,"]])
def test_algorithms_come_with_commas_or_spaces(words: list[str]) -> None:
    assert parse_compare(words).comparison.names == ("poise", "grpo")


def test_options_of_two_algorithms_of_the_same_name_do_not_mix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(PLUGIN)
    words = [
        "--algos",
        "mine.py:Mine,dr_grpo,grpo,dapo",
        "--mine.weights",
        "3",
        "4",
        "--dapo.eps",
        "0.1",
        "--grpo.eps",
        "0.2",
    ]
    mine, _, grpo, dapo = parse_compare(words).comparison.algorithms
    assert vars(mine)["weights"] == (3.0, 4.0)
    assert (vars(grpo)["eps"], vars(dapo)["eps"]) == (0.2, 0.1)


MISTAKES = {
    "": "--algos is missing: Algorithms to compare, with commas in between; each as --algo takes it",
    "--algos": "--algos is empty; list algorithms with commas in between, such as --algos poise,grpo",
    "--algos ,": "--algos is empty; list algorithms with commas in between, such as --algos poise,grpo",
    "--algos poise,gropo": "--algos: there is no algorithm 'gropo', did you mean 'grpo'?",
    "--algos poise,poise": "--algos lists poise 2 times; its runs would share their folders",
    "--algos nowhere.py:X": "--algos: there is no file 'nowhere.py'",
    "--algos poise --dapo.eps 1": "--dapo.eps is an option of dapo, which --algos does not list; leave it out or add dapo",
    "--algos poise --dr-grpo.x 1": (
        "--dr-grpo.x is an option of dr_grpo, which --algos does not list; leave it out or add dr_grpo"
    ),
    "--algos poise,grpo --grpo.esp 1": "grpo has no option 'esp', did you mean 'eps'?",
    "--algos poise,grpo --poise.eps 1": "poise has no option 'eps'; it has: ",
    "--algos poise --foo.bar 1": "there is no flag '--foo.bar': options of the listed algorithms are --poise.OPTION",
    "--algos poise --sedes 3": "there is no flag '--sedes', did you mean '--seeds'?",
    "--algo poise": "there is no flag '--algo' here: algorithms are listed as --algos A,B",
    "--algos poise --algo grpo": "there is no flag '--algo' here: algorithms are listed as --algos A,B",
    "--algos poise --resume auto": (
        "there is no flag '--resume' here: vantage compare always goes on with what --out holds"
    ),
    "--algos poise --seeds x": "--seeds is 'x', it must be a whole number",
    "--algos poise --seeds 0": "--seeds is 0, it must be greater than 0",
    "--algos poise --steps 3 --budget-tokens 5": "--steps and --budget-tokens are 2 budgets; give one of them",
    "--algos poise --tune --learning-rates 1e-4,x": (
        "--learning-rates is '1e-4,x', it must be numbers with commas in between"
    ),
    "--algos poise --learning-rates 1e-4,1e-3": "--learning-rates is a setting of the tuning; add --tune or leave it out",
    "--algos poise --tune --learning-rates": (
        "--learning-rates has one value, which is nothing to choose from; give two or more"
    ),
    "--algos poise --target half": "--target is 'half', it must be a number",
    "--algos poise --temperature 0": "--temperature is 0: training needs random rollouts, a value such as 1.0",
    "--algos grpo --grpo.eps -1": "--grpo.eps is -1.0, it must be greater than 0",
}  # fmt: skip


@pytest.mark.parametrize(("line", "message"), MISTAKES.items(), ids=list(MISTAKES))
def test_a_mistake_is_one_line(line: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_compare(line.split())
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_mistake_ends_with_status_2_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", "--algos", "poise,grpo", "--task", "jsonl:none.jsonl"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vantage: error: --task jsonl:none.jsonl: ")
    assert captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_launcher_of_several_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli.main(["compare", "--algos", "poise"]) == 2
    assert "call it without a launcher" in capsys.readouterr().err


def test_the_dry_run_lists_the_runs_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        cli.main(
            ["compare", "--algos", "poise,grpo", "--seeds", "1", "--tune", "--learning-rates", "1e-4,1e-3", "--dry-run"]
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "# 6 runs of 60 steps each, in runs/compare-sums-poise-grpo"
    assert lines[1] == "tuning   tuning/poise-lr0.0001-seed1000"
    assert lines[5:7] == ["report   cells/poise-seed0", "report   cells/grpo-seed0"]
    assert list(tmp_path.iterdir()) == []


def test_the_help_shows_shared_flags_and_options_of_the_listed_algorithms(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "--algos", "poise,dapo", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for flag in ("--algos A,B,...", "--budget-tokens", "--poise.layer", "--dapo.eps", "--temperature", "--tune "):
        assert flag in text
    assert "--grpo." not in text
    assert "--resume" not in text
