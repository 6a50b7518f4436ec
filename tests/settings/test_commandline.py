"""From the words of a command line to a configuration: what is understood, and what is said of what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.settings.test_configfile import PLUGIN
from vantage.config import EvalConfig, SftConfig, TrainConfig
from vantage.errors import UserError
from vantage.estimators.grpo import Grpo
from vantage.estimators.poise import Poise
from vantage.settings.commandline import parse_dataclass, parse_train
from vantage.settings.fieldtypes import docstrings, fields_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(PLUGIN)
    return tmp_path


def test_no_arguments_are_the_defaults() -> None:
    assert parse_train([]).config == TrainConfig()


def test_flags_of_every_kind() -> None:
    request = parse_train(
        [
            "--steps=3",
            "--rollouts_per_step",
            "64",
            "--num-generations",
            "4",
            "--adam-betas",
            "0.5",
            "0.75",
            "--stop",
            "a",
            "b",
            "--reward",
            "x.py:f",
            "--reward",
            "y.py:g",
            "--reward-range",
            "-1",
            "2",
            "--device",
            "cpu",
            "--poise.alpha",
            "0.5",
            "--poise.layer",
            "None",
            "--dry-run",
        ]
    )
    assert request.dry_run
    assert request.config == TrainConfig(
        steps=3, rollouts_per_step=64, rollouts_per_prompt=4, adam_betas=(0.5, 0.75), stop=("a", "b"),
        reward=("x.py:f", "y.py:g"), reward_range=(-1.0, 2.0), device="cpu", algo=Poise(alpha=0.5),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("said", "meant"), [("true", True), ("False", False), ("FALSE", False), ("null", None), ("none", None)]
)
def test_a_switch_with_a_third_state_takes_the_words_that_its_help_shows(said: str, meant: bool | None) -> None:
    assert parse_train(["--enable-thinking", said]).config.enable_thinking is meant
    assert parse_train([f"--enable-thinking={said}"]).config.enable_thinking is meant
    with pytest.raises(UserError, match="--enable-thinking is 'maybe', it must be true or false"):
        parse_train(["--enable-thinking", "maybe"])


def test_a_value_that_looks_like_a_flag_is_joined_by_an_equals_sign() -> None:
    assert parse_train(["--stop=--", "--out=-x"]).config == TrainConfig(stop=("--",), out="-x")


def test_an_algorithm_from_a_file_has_flags_of_its_own(folder: Path) -> None:
    config = parse_train(["--mine.weights", "3", "4", "5", "--mine.no-switch", "--algo", "mine.py:Mine"]).config
    assert (config.algo.name, vars(config.algo)) == (
        "mine",
        {"weights": (3.0, 4.0, 5.0), "switch": False, "mode": None},
    )


def test_flags_overlay_yaml_overlays_defaults(folder: Path) -> None:
    (folder / "c.yaml").write_text("algo: grpo\nsteps: 5\nseed: 7\ngrpo: {eps: 0.5, scale: none}\n")
    request = parse_train(["--grpo.eps", "0.25", "c.yaml", "--steps", "6"])
    assert request.config == TrainConfig(steps=6, seed=7, algo=Grpo(eps=0.25, scale="none"))
    assert request.note == ""


def test_a_flag_mends_a_value_of_the_file(folder: Path) -> None:
    (folder / "c.yaml").write_text("rollouts_per_prompt: 1\npoise: {alpha: -1}\n")
    config = parse_train(["c.yaml", "--rollouts-per-prompt", "2", "--poise.alpha", "1"]).config
    assert config == TrainConfig(rollouts_per_prompt=2, algo=Poise(alpha=1.0))


@pytest.mark.parametrize(
    ("flags", "prompts", "group"),
    [("", 8, 2), ("--rollouts-per-step 64", 32, 2), ("--rollouts-per-prompt 4", 4, 4), ("--prompts-per-step 3", 3, 2)],
)
def test_a_flag_on_the_size_of_a_step_wins_over_every_size_in_the_file(
    folder: Path, flags: str, prompts: int, group: int
) -> None:
    (folder / "c.yaml").write_text("rollouts_per_step: 16\nprompts_per_step: 8\nrollouts_per_prompt: 2\n")
    config = parse_train(["c.yaml", *flags.split()]).config
    assert (config.prompts, config.group_size) == (prompts, group)


TRAIN_MISTAKES = {
    "--stpes 5": "there is no flag '--stpes', did you mean '--steps'?",
    "--layer 3": "there is no flag '--layer', did you mean '--poise.layer'?",
    "-x": "there is no flag '-x'; --help lists all",
    "--no-dry-run": "there is no flag '--no-dry-run', did you mean '--dry-run'?",
    "--grpo.eps 1": "--grpo.eps is an option of grpo, but --algo is poise; leave it out or add --algo grpo",
    "--poise.lyaer 2": "poise has no option 'lyaer', did you mean 'layer'?",
    "--algo rloo --rloo.x 2": "rloo has no option 'x'; it has none",
    "--foo.bar 3": "there is no flag '--foo.bar': the algorithm is poise, its options are --poise.OPTION",
    "--algo gpro": "--algo: there is no algorithm 'gpro', did you mean 'grpo'?",
    "--algo mine.py:Mime": "--algo: mine.py has no 'Mime', did you mean 'Mine'?",
    "--steps": "--steps needs a value: a whole number",
    "--steps --seed 1": "--steps needs a value: a whole number",
    "--steps abc": "--steps is 'abc', it must be a whole number",
    "--steps 1.5": "--steps is '1.5', it must be a whole number",
    "--temperature warm": "--temperature is 'warm', it must be a number",
    "--device gpu": "--device is 'gpu', it must be one of auto, cpu, cuda",
    "--poise.alpha big": "--poise.alpha is 'big', it must be a number or auto",
    "--adam-betas 0.9": "--adam-betas needs 2 numbers, 1 given: 0.9",
    "--adam-betas 0.9 0.9 0.9": "'0.9' is one argument too many: --adam-betas takes 2 values",
    "--adam-betas 0.9 x": "--adam-betas is '0.9' 'x', it must be 2 numbers",
    "--adam-betas=1": "--adam-betas needs 2 numbers, with spaces in between and without '='",
    "--adam-betas 1 2": "--adam-betas is (1.0, 2.0), both must be in [0, 1)",
    "--dry-run False": "'False' is one argument too many: --dry-run takes no value",
    "--dry-run=1": "--dry-run is a switch and takes no value; leave out '=1'",
    "--stop=-a --stop=-b": "--stop: of several values, none can begin with '-' on the command line; use a YAML file",
    "c.yaml d.yaml": "'d.yaml' is one argument too many; leave it out",
    "e.yaml": "CONFIG e.yaml: there is no such file, did you mean 'c.yaml'?",
    "--steps 0": "--steps is 0, it must be greater than 0",
    "--learning-rate nan": "--learning-rate is nan, it must be a finite number",
    "--rollouts-per-prompt 1": "--rollouts-per-prompt is 1, poise compares rollouts of a prompt: at least 2",
    "--algo grpo --num-generations 1": "--rollouts-per-prompt is 1, grpo compares rollouts of a prompt: at least 2",
    "--prompts-per-step 3 --rollouts-per-step 100": (
        "--prompts-per-step 3 × 2 rollouts per prompt are not the --rollouts-per-step 100; give one of the two flags"
    ),
}


@pytest.mark.parametrize(("line", "message"), TRAIN_MISTAKES.items(), ids=list(TRAIN_MISTAKES))
def test_a_mistake_in_train_names_the_flag_and_the_fix(folder: Path, line: str, message: str) -> None:
    (folder / "c.yaml").write_text("steps: 5\n")
    with pytest.raises(UserError) as caught:
        parse_train(line.split())
    assert str(caught.value) == message


def test_a_value_that_only_the_file_has_is_blamed_on_the_file(folder: Path) -> None:
    (folder / "c.yaml").write_text("steps: 0\ntop_p: 2\n")
    with pytest.raises(UserError, match=r"^c\.yaml: --steps is 0, it must be greater than 0$"):
        parse_train(["c.yaml"])
    with pytest.raises(UserError, match=r"^c\.yaml: --top-p is 2\.0, it must be in \(0, 1\]$"):
        parse_train(["c.yaml", "--steps", "3"])
    with pytest.raises(UserError, match=r"^--steps is -1, it must be greater than 0$"):
        parse_train(["c.yaml", "--steps", "-1"])


def test_eval_takes_its_model_as_an_argument() -> None:
    config = parse_dataclass(EvalConfig, ["--k", "8", "runs/x", "--top-p", "1"], "vantage eval", {"model": "MODEL|RUN"})
    assert config == EvalConfig("runs/x", k=8, top_p=1.0)


def test_sft_takes_flags_only() -> None:
    assert parse_dataclass(SftConfig, ["--out", "m", "--steps", "2"], "vantage sft") == SftConfig(out="m", steps=2)


@pytest.mark.parametrize("cls", [TrainConfig, EvalConfig, SftConfig, Poise, Grpo])
def test_every_field_has_a_help_text(cls: type) -> None:
    assert set(fields_of(cls)) == set(docstrings(cls)) & set(fields_of(cls))
