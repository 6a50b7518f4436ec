"""The command line: what is parsed, and that each mistake is one line on standard error with status 2."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import vantage
from tests.settings.test_configfile import PLUGIN
from vantage import cli, taskview
from vantage.config import TrainConfig
from vantage.estimators.grpo import Grpo
from vantage.estimators.poise import Poise
from vantage.interrupts import Interrupted
from vantage.settings.configfile import load_yaml_config
from vantage.tasks import from_dataset


def run(*args: str, cwd: Path, code: str = "") -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    source = str(Path(vantage.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    command = [sys.executable, *(["-c", code] if code else ["-m", "vantage"]), *args]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PLUGIN)
    return tmp_path


# --- the process: status, streams, files -----------------------------------------------------------------------------

NO_TORCH = """\
import sys
from vantage.cli import main
status = main(sys.argv[1:])
heavy = {"torch", "transformers", "datasets"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else status)
"""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "--stpes", "5"], "there is no flag '--stpes', did you mean '--steps'?"),
        (["train", "--task", "sms"], "--task: there is no task 'sms', did you mean 'sums'?"),
        (["eval", "tiny", "--task", "sms"], "--task: there is no task 'sms', did you mean 'sums'?"),
        (
            ["compare", "--algos", "poise,gropo"],
            "--algos: there is no algorithm 'gropo', did you mean 'grpo'?",
        ),
        (
            ["compare", "--algos", "poise,grpo", "--task", "sms"],
            "--task: there is no task 'sms', did you mean 'sums'?",
        ),
        (["trian"], "there is no command 'trian', did you mean 'train'?"),
    ],
)
def test_a_mistake_is_one_line_status_2_nothing_written_and_no_torch(
    tmp_path: Path, args: list[str], message: str
) -> None:
    done = run(*args, cwd=tmp_path, code=NO_TORCH)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"vantage: error: {message}\n")
    assert list(tmp_path.iterdir()) == []


def test_dry_run_prints_a_configuration_that_prints_itself_and_writes_nothing(tmp_path: Path) -> None:
    first = run("train", "--algo", "grpo", "--grpo.eps", "0.5", "--steps", "3", "--dry-run", cwd=tmp_path)
    assert (first.returncode, first.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "c.yaml").write_text(first.stdout)
    second = run("train", "c.yaml", "--dry-run", cwd=tmp_path)
    assert second.stdout == first.stdout
    config = load_yaml_config(tmp_path / "c.yaml")
    assert config.algo == Grpo(eps=0.5)
    assert (config.steps, config.rollouts_per_prompt, config.max_new_tokens) == (3, 8, 80)
    assert (config.clip_high, config.aggregation, config.learning_rate) == (0.2, "seq-mean-token-mean", 1.5e-4)


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    code = "import sys, os; os.close(0)\nfrom vantage.cli import main; sys.exit(main(['train', '--help']))"
    reading, writing = os.pipe()
    os.close(reading)
    source = str(Path(vantage.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": source}, timeout=240,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_python_m_vantage_is_the_command(tmp_path: Path) -> None:
    done = run("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"vantage {vantage.__version__}\n")


# --- main, in this process -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_the_overview_has_a_line_for_each_command(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(args) == 0
    out = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert out.count(f"\n  {command} ") == 1


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_each_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: vantage {command} [-h]")


def test_the_help_of_train_shows_the_options_of_the_chosen_algorithm(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["train", "--help"])
    poise = capsys.readouterr().out
    cli.main(["train", "--algo", "mine.py:Mine", "--help"])
    mine = capsys.readouterr().out
    assert "--poise.buffer-steps INT" in poise
    assert "Training steps; one step is one batch of rollouts." in poise
    assert "--device {auto,cpu,cuda}" in poise
    assert "--num-generations INT, --rollouts-per-prompt INT" in poise
    assert "--mine.weights [FLOAT ...]" in mine
    assert "Weights of something." in mine
    assert "--poise." not in mine


def test_an_interrupt_outside_of_training_is_status_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "tasks", stop)
    assert cli.main(["tasks"]) == 130
    assert capsys.readouterr().err == "vantage: interrupted\n"


def test_an_unexpected_exception_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setitem(cli.COMMANDS, "tasks", bug)
    with pytest.raises(ZeroDivisionError):
        cli.main(["tasks"])


def fake_trainer(monkeypatch: pytest.MonkeyPatch, ending: BaseException | None = None) -> list[TrainConfig]:
    """Replace the trainer; returns the configurations that it was given."""
    seen: list[TrainConfig] = []

    class Fake:
        world = SimpleNamespace(close=lambda: None)

        def __init__(self, config: TrainConfig, **_: object) -> None:
            seen.append(config)

        def train(self) -> None:
            if ending:
                raise ending

    monkeypatch.setitem(sys.modules, "vantage.trainer", SimpleNamespace(Trainer=Fake))
    return seen


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, status: int
) -> None:
    fake_trainer(monkeypatch, Interrupted(number, 3, 10, Path("runs/x")))
    assert cli.main(["train"]) == status
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--out runs/x --resume auto" in err


def test_train_hands_the_configuration_to_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = fake_trainer(monkeypatch)
    assert cli.main(["train", "--algo", "grpo", "--steps", "2"]) == 0
    assert seen == [TrainConfig(steps=2, algo=Grpo())]


# --- mistakes in every command ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["eval"], "MODEL|RUN is missing: Model (as `vantage train --model` takes it) or run directory"),
        (["eval", "tiny", "x"], "'x' is one argument too many; leave it out"),
        (["eval", "tiny", "--k", "0"], "--k is 0, it must be greater than 0"),
        (["eval", "tiny", "--steps", "1"], "there is no flag '--steps'; --help lists all"),
        (["sft"], "--out is missing: Folder for the model"),
        (["sft", "--out", "x", "--batch-size", "x"], "--batch-size is 'x', it must be a whole number"),
        (["report"], "RUN is missing: vantage report RUN [RUN ...] takes one or more run directories"),
        (["report", "x"], "run: x does not exist; give the folder that `vantage train` wrote (its --out)"),
        (["tasks", "sums", "--count", "0"], "--count is 0, it must be greater than 0"),
        (["tasks", "sms"], "--task: there is no task 'sms', did you mean 'sums'?"),
        (["doctor", "--jsn"], "there is no flag '--jsn', did you mean '--json'?"),
        (["--verison"], "there is no option '--verison', did you mean '--version'?"),
        (["zzz"], "there is no command 'zzz'; vantage --help lists the commands"),
        (
            ["train", "--dr-grpo.x", "1"],
            "--dr-grpo.x is an option of dr_grpo, but --algo is poise; leave it out or add --algo dr_grpo",
        ),
        (["compare"], "--algos is missing: Algorithms to compare, with commas in between; each as --algo takes it"),
    ],
)
def test_a_mistake_in_any_command_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert cli.main(args) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"vantage: error: {message}\n")


# --- tasks -----------------------------------------------------------------------------------------------------------


def test_tasks_lists_every_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tasks"]) == 0
    out = capsys.readouterr().out
    for name in ("sums", "sums:more-terms", "sums:three-digits", "jsonl:PATH"):
        assert name in out


def test_tasks_shows_problems_with_rewards_from_the_reward_function(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tasks", "sums", "--count", "3"]) == 0
    cells = [line.split("│") for line in capsys.readouterr().out.splitlines()]
    scored = [(c[2].strip(), c[3].strip()) for c in cells if len(c) > 3 and c[3].strip()]
    assert scored == [("correct", "1"), ("wrong", "0")] * 3
    (folder / "r.py").write_text("def always(completions, **kwargs):\n    return [0.25] * len(completions)\n")
    assert cli.main(["tasks", "sums", "--count", "1", "--reward", "r.py:always"]) == 0
    assert capsys.readouterr().out.count("0.25") == 2


def test_tasks_shows_domains_of_data_and_why_a_row_can_not_be_judged(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "d.jsonl").write_text('{"prompt": "1+1=", "result": "2", "kind": "even"}\n')
    shown = ["tasks", "d.jsonl", "--count", "1", "--reward", "math", "--domain-column", "kind"]
    assert cli.main(shown) == 0
    assert "there is no reference answer" in " ".join(capsys.readouterr().out.split())
    assert cli.main([*shown, "--answer-column", "result"]) == 0
    cells = [[cell.strip() for cell in line.split("│")] for line in capsys.readouterr().out.splitlines()]
    assert ["", "1+1=", "even", "the answer column", "1", ""] in cells


@pytest.mark.parametrize("world", ["tools", "instructions"])
def test_the_wrong_responses_of_other_worlds_are_wrong(world: str) -> None:
    task = taskview.get_task(world)
    work = taskview.Workload.of(task)
    for problem in task.train[:20]:
        found = [taskview.score(work, problem, text) for _, text in taskview.responses(task, problem)]
        assert found == ["1", "0"]


def test_responses_of_which_nothing_is_known_are_not_called_wrong() -> None:
    task = from_dataset([{"prompt": "Write no comma."}] * 10)
    assert taskview.responses(task, task.train[0]) == [("empty", ""), ("some text", "?")]


def test_a_response_is_made_wrong_at_its_last_digit() -> None:
    assert taskview.altered("1+1=2\n>19 .") == "1+1=2\n>10 ."
    assert taskview.altered("yes") == "yes?"


def test_the_dry_run_of_a_file_task_needs_a_reward(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "d.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n' * 20)
    assert cli.main(["train", "--task", "jsonl:d.jsonl", "--dry-run"]) == 2
    assert capsys.readouterr().err.startswith(
        "vantage: error: --reward: task 'jsonl:d.jsonl' brings no reward function"
    )


# --- the package -----------------------------------------------------------------------------------------------------


def test_the_public_names_are_there() -> None:
    names = {
        "TrainConfig",
        "EvalConfig",
        "SftConfig",
        "Trainer",
        "Poise",
        "Grpo",
        "Rloo",
        "Task",
        "Problem",
        "UserError",
    }
    assert names <= set(dir(vantage))
    assert vantage.Poise is Poise
    assert vantage.TrainConfig is TrainConfig
    with pytest.raises(AttributeError, match="has no attribute 'Pose'"):
        _ = vantage.Pose


def test_the_dry_run_is_plain_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["poise"]["alpha"] == "auto"
