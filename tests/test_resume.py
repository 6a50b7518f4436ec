"""Resume: bit-identical weights and metrics after kills anywhere, in the middle of a checkpoint too."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import safe_open

from vantage import TrainConfig, Trainer, checkpoint
from vantage.errors import UserError
from vantage.estimators.grpo import Grpo
from vantage.estimators.poise import Poise
from vantage.trainer import Interrupted

STEPS = 6
MEASURED = ("time/", "throughput/", "mem/")


def arguments(model: Path, out: Path, steps: int = STEPS) -> list[str]:
    flags = {
        "model": model, "out": out, "steps": steps, "rollouts-per-step": 8, "max-new-tokens": 12, "eval-problems": 5,
        "eval-every": 2, "checkpoint-every": 2, "samples-every": 1, "learning-rate": 1e-2, "warmup-steps": 3,
        "lr-schedule": "constant", "resume": "auto", "poise.bootstrap": 1, "reward": Path(__file__).parent / "odd.py",
    }  # fmt: skip
    flags["reward"] = f"{flags['reward']}:odd_length"
    return [part for name, value in flags.items() for part in (f"--{name}", str(value))]


def run(code: str, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    done = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, env=environment, cwd=root
    )
    assert not check or done.returncode == 0, done.stderr
    return done


TRAIN = "import sys; from vantage.cli import main; sys.exit(main(['train', *sys.argv[1:]]))"
KILL_IN_CHECKPOINT = """
import os, signal, sys
from vantage import checkpoint
save, calls = checkpoint.save_state, [0]
def deadly(stem, state, *world):
    calls[0] += 1
    if calls[0] == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    save(stem, state, *world)
checkpoint.save_state = deadly
from vantage.cli import main
main(['train', *sys.argv[2:]])
"""


def rows(out: Path) -> list[dict]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(MEASURED)} for row in found]


def weights(folder: Path) -> dict[str, bytes]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def uninterrupted(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(TRAIN, *arguments(small_model, out))
    return out


def assert_same_end(out: Path, uninterrupted: Path) -> None:
    assert rows(out) == rows(uninterrupted)
    assert weights(out / "model") == weights(uninterrupted / "model")
    assert (out / "samples.jsonl").read_bytes() == (uninterrupted / "samples.jsonl").read_bytes()


def test_the_uninterrupted_run_trains_and_has_every_row(uninterrupted: Path, small_model: Path):
    assert [row["step"] for row in rows(uninterrupted)] == list(range(STEPS + 1))
    assert weights(uninterrupted / "model") != weights(small_model)
    assert rows(uninterrupted)[-1]["poise/trusted"] == 1.0


@pytest.mark.parametrize("call", [1, 5, 9])
def test_killed_in_the_middle_of_writing_a_checkpoint(
    call: int, small_model: Path, tmp_path: Path, uninterrupted: Path
):
    out = tmp_path / "run"
    done = run(KILL_IN_CHECKPOINT, str(call), *arguments(small_model, out), check=False)
    assert done.returncode == -signal.SIGKILL
    assert list((out / "checkpoints").glob(".step-*")), "the kill did not fall into a checkpoint"
    run(TRAIN, *arguments(small_model, out))
    assert not list((out / "checkpoints").glob(".step-*"))
    assert_same_end(out, uninterrupted)


def test_killed_at_random_moments_again_and_again(small_model: Path, tmp_path: Path, uninterrupted: Path):
    out, draw, kills = tmp_path / "run", random.Random(0), 0
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    while True:
        process = subprocess.Popen(
            [sys.executable, "-c", TRAIN, *arguments(small_model, out)],
            env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while process.poll() is None and not (out / "metrics.jsonl").exists():
            time.sleep(0.02)
        deadline = time.time() + draw.uniform(0.05, 0.6)
        while process.poll() is None and time.time() < deadline and kills < 3:
            time.sleep(0.01)
        if kills == 3:
            assert process.wait() == 0
            break
        process.kill()
        process.wait()
        kills += 1
    assert_same_end(out, uninterrupted)


def test_sigterm_checkpoints_says_how_to_go_on_and_the_command_works(small_model: Path, tmp_path: Path, uninterrupted):
    out = tmp_path / "run"
    interrupt = "import os, signal; from vantage import trainer; t = trainer.Trainer.train_step\n"
    interrupt += "def step(self, n):\n    if n == 3: os.kill(os.getpid(), signal.SIGTERM)\n    return t(self, n)\n"
    interrupt += "trainer.Trainer.train_step = step\n" + TRAIN
    done = run(interrupt, *arguments(small_model, out), check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert checkpoint.newest(out / "checkpoints").name == "step-000003"
    command = done.stderr.strip().splitlines()[-1].partition("go on with: vantage train ")[2]
    assert command
    run(TRAIN, *command.split())
    assert_same_end(out, uninterrupted)


def test_a_finished_run_resumes_to_the_same_end_and_further_steps_can_be_added(small_model, tmp_path, uninterrupted):
    run(TRAIN, *arguments(small_model, uninterrupted))
    assert [row["step"] for row in rows(uninterrupted)] == list(range(STEPS + 1))
    branch = tmp_path / "branch"
    source = uninterrupted / "checkpoints" / "step-000006"
    flags = arguments(small_model, branch, steps=8)
    flags[flags.index("auto")] = str(source)
    run(TRAIN, *flags)
    assert [row["step"] for row in rows(branch)] == list(range(9))
    assert rows(branch)[:6] == rows(uninterrupted)[:6]


def trainer(model: Path, out: Path, resume: str = "never", **changes) -> Trainer:
    settings = {
        "model": str(model), "out": str(out), "steps": 2, "rollouts_per_step": 4, "max_new_tokens": 6,
        "eval_problems": 0, "checkpoint_every": 1, "learning_rate": 1e-3, "resume": resume,
    }  # fmt: skip
    return Trainer(TrainConfig(**(settings | changes)))


def test_another_configuration_is_refused_by_name(small_model, tmp_path):
    trainer(small_model, tmp_path / "run").train()
    with pytest.raises(UserError, match=r"--learning-rate is 0.5, but the run in .* has 0.001"):
        trainer(small_model, tmp_path / "run", resume="auto", learning_rate=0.5)
    with pytest.raises(UserError, match="--algo"):
        trainer(small_model, tmp_path / "run", resume="auto", algo=Grpo(), rollouts_per_prompt=2)
    with pytest.raises(UserError, match="choose another, or go on with --resume auto"):
        trainer(small_model, tmp_path / "run")


def test_a_run_of_an_older_version_that_lacked_an_option_goes_on(small_model, tmp_path):
    trainer(small_model, tmp_path / "run").train()
    file = tmp_path / "run" / "config.yaml"
    newer = ("mismatch_correction:", "mismatch_cap:", "group_filter:", "sharding:")
    kept = [line for line in file.read_text().splitlines() if not line.startswith(newer)]
    file.write_text("\n".join(kept))
    trainer(small_model, tmp_path / "run", resume="auto", steps=3).train()
    assert [row["step"] for row in rows(tmp_path / "run") if "tokens/total" in row][-1] == 3
    file.write_text("\n".join(kept))
    with pytest.raises(UserError, match=r"--mismatch-correction is token, but the run in .* has none"):
        trainer(small_model, tmp_path / "run", resume="auto", steps=3, mismatch_correction="token")


def test_another_tokenizer_verifier_or_a_lost_state_is_refused(small_model, tmp_path, monkeypatch):
    trainer(small_model, tmp_path / "run").train()
    source = str(tmp_path / "run" / "checkpoints" / "step-000002")
    other = trainer(small_model, tmp_path / "new", resume=source, steps=3)
    other.policy.tokenizer.add_tokens(["<new>"])
    with pytest.raises(UserError, match="another tokenizer"):
        other.train()
    other = trainer(small_model, tmp_path / "new", resume=source, steps=3)
    monkeypatch.setattr(type(other.work.task), "version", "2", raising=False)
    with pytest.raises(UserError, match="another verifier version"):
        other.train()
    monkeypatch.undo()
    with pytest.raises(UserError, match="another algorithm"):
        trainer(small_model, tmp_path / "new", resume=source, algo=Grpo(), rollouts_per_prompt=2, steps=3).train()
    (tmp_path / "run" / "checkpoints" / "step-000002" / "estimator.safetensors").unlink()
    with pytest.raises(UserError, match="the estimator's state is missing"):
        trainer(small_model, tmp_path / "new", resume=source, steps=3).train()
    assert not (tmp_path / "new").exists()


def test_a_folder_without_marker_is_no_checkpoint(small_model, tmp_path):
    trainer(small_model, tmp_path / "run", keep_checkpoints=1).train()
    found = checkpoint.complete(tmp_path / "run" / "checkpoints")
    assert [p.name for p in found] == ["step-000002"]
    (found[0] / checkpoint.MARKER).unlink()
    assert checkpoint.newest(tmp_path / "run" / "checkpoints") is None
    with pytest.raises(UserError, match="not a finished checkpoint"):
        trainer(small_model, tmp_path / "new", resume=str(found[0]))


def test_poise_state_round_trip_gives_the_same_predictions(small_model, tmp_path):
    first = trainer(small_model, tmp_path / "run", algo=Poise(bootstrap=0))
    first.train()
    second = trainer(small_model, tmp_path / "copy", algo=Poise(bootstrap=0))
    second.estimator.load_state_dict(first.estimator.state_dict())
    ours, theirs = first.estimator.domains["sums"], second.estimator.domains["sums"]
    features, _ = ours.buffer.data()
    assert ours.predict(features, 99).tolist() == theirs.predict(features, 99).tolist()


def test_a_run_that_was_stopped_before_its_first_step_has_one_row_of_step_zero(small_model, tmp_path):
    class Stopped:
        def __init__(self, loud=True):
            self.caught = signal.SIGTERM

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    config = TrainConfig(
        model=str(small_model), out=str(tmp_path / "run"), steps=2, rollouts_per_step=8, max_new_tokens=6,
        eval_problems=4, resume="auto",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("vantage.trainer.Interrupts", Stopped)
        with pytest.raises(Interrupted, match="after step 0 of 2"):
            Trainer(config).train()
    assert (tmp_path / "run/checkpoints/step-000000/COMPLETE").exists()
    Trainer(config).train()
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2]
