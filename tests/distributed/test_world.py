"""Several processes: the update of a step does not depend on how many there are."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.genac.made import QUICK
from tests.helpers import load_in_turns, together
from tests.odd import odd_length as odd
from vantage.advantages import leave_one_out_of_batch, whiten
from vantage.batch import gathered
from vantage.checkpoint import newest
from vantage.config import TrainConfig
from vantage.distributed.world import World, buckets, join_world
from vantage.errors import UserError
from vantage.estimators import REGISTRY, get_algorithm
from vantage.trainer import Trainer

SETTINGS = {
    "task": "sums", "steps": 3, "rollouts_per_step": 24, "max_new_tokens": 8, "eval_problems": 10, "eval_every": 0,
    "checkpoint_every": 2, "samples_every": 1, "learning_rate": 1e-3,
}  # fmt: skip
CASES = {
    **{name: {} for name in REGISTRY},
    "genac": {"algo": "genac", "options": QUICK},
    "dapo with surplus groups": {"algo": "dapo", "rollouts_per_prompt": 4},
    "poise from the second step on": {"algo": "poise", "options": {"bootstrap": 0}},
    "poise_token from the second step on": {
        "algo": "poise_token", "options": {"bootstrap": 0, "targets": "td", "gae_lambda": 0.9, "positions": 3},
    },
    "reinforce over responses": {"algo": "reinforce", "options": {"over": "responses"}},
    "reinforce with a group baseline": {
        "algo": "reinforce", "options": {"baseline": "group"}, "rollouts_per_prompt": 2,
    },
    "vineppo with siblings": {
        "algo": "vineppo",
        "rollouts_per_prompt": 2,
        "options": {"continuations": 3, "kind": "fixed", "tokens": 3, "cap": 1, "reuse": True},
    },
    "ppo of a head on the policy": {
        # AdamW moves weights of almost no gradient by up to the rate, whatever their sign: the rate bounds what rounding does.
        "algo": "ppo", "options": {"critic": "head", "lam_actor": 0.9}, "learning_rate": 1e-4,
    },
    "ppo whose head needs no pre-pass": {"algo": "ppo", "options": {"critic": "head", "whiten": "none", "lam_critic": 0.9}},
    "ppo with whitened values, pretrained": {
        "algo": "ppo", "options": {"whiten_values": True, "value_warmup_steps": 1, "critic_epochs": 2},
    },
    "mini-batches and epochs": {"algo": "grpo", "rollouts_per_prompt": 2, "minibatches": 3, "epochs": 2},
    "more processes than mini-batch groups": {"algo": "rloo", "minibatches": 3},
    "kl k3": {"algo": "grpo", "kl_coef": 0.5},
    "kl exact": {"algo": "rloo", "kl_coef": 0.5, "kl_estimator": "exact"},
    "gspo": {"algo": "grpo", "policy_loss": "gspo", "minibatches": 3},
    "cispo, masked": {"algo": "grpo", "policy_loss": "cispo", "minibatches": 3, "mask_truncated": True},
    "token mean, cut into small micro-batches": {"algo": "dr_grpo", "aggregation": "token-mean", "tokens_per_microbatch": 40},
}  # fmt: skip


def made(case: str, model: Path, out: Path) -> TrainConfig:
    changes = dict(CASES[case])
    algo = get_algorithm(changes.pop("algo", case))(**changes.pop("options", {}))
    return TrainConfig(model=str(model), out=str(out), algo=algo, **(SETTINGS | changes))


def trained(config: TrainConfig, world: World | None = None) -> tuple[dict[str, torch.Tensor], list[dict]]:
    trainer = Trainer(config, reward_funcs=odd, world=world)
    trainer.train()
    return {k: v.clone() for k, v in trainer.policy.model.state_dict().items()}, rows(Path(config.out))


def rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def comparable(row: dict) -> dict:
    kept = {k: v for k, v in row.items() if not k.startswith(("time/", "throughput/", "mem/"))}
    return {k: math.nan if v is None else v for k, v in kept.items()}


def assert_same_run(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(map(comparable, found), map(comparable, expected)):
        assert ours == pytest.approx(theirs, rel=2e-3, abs=2e-4, nan_ok=True)


@pytest.fixture(autouse=True)
def one_at_a_time(monkeypatch):
    """Loading a model with transformers is not made for threads."""
    load_in_turns(monkeypatch)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_update_of_one(case, small_model, tmp_path):
    before = trained(made(case, small_model, tmp_path / "one"))
    found = together(2, lambda world: trained(made(case, small_model, tmp_path / "two"), world))
    for weights, _ in found:
        for name, expected in before[0].items():
            torch.testing.assert_close(weights[name], expected, rtol=0, atol=2e-5)
    assert all(torch.equal(a, b) for a, b in zip(found[0][0].values(), found[1][0].values()))
    assert_same_run(found[0][1], before[1])


def test_the_rollouts_of_a_step_do_not_depend_on_the_number_of_processes(small_model, tmp_path):
    config = dataclasses.replace(made("dapo", small_model, tmp_path), rollouts_per_prompt=4)

    def collected(world: World):
        trainer = Trainer(config, reward_funcs=odd, world=world)
        return trainer.collector(1, trainer.stream, 0), world

    alone, _ = collected(World())
    for size in (2, 3):
        for found, _ in together(size, collected):
            assert found.consumed == alone.consumed
            assert found.groups == alone.groups == 6
            assert {k: v for k, v in found.metrics.items() if "time" not in k} == pytest.approx(
                {k: v for k, v in alone.metrics.items() if "time" not in k}
            )
        whole = together(size, lambda world: gathered(collected(world)[0].batch, {}, world)[0])
        assert all(batch.response_ids == alone.batch.response_ids for batch in whole)
        assert all(batch.prompt_ids == alone.batch.prompt_ids for batch in whole)
        assert all(torch.equal(batch.group_B, alone.batch.group_B) for batch in whole)
        assert all(torch.equal(batch.reward_B, alone.batch.reward_B) for batch in whole)


def test_processes_with_different_weights_are_refused(small_model, tmp_path):
    def drifted(world: World):
        trainer = Trainer(made("rloo", small_model, tmp_path), reward_funcs=odd, world=world)
        if world.rank == 1:
            with torch.no_grad():
                next(trainer.policy.model.parameters()).add_(1)
        trainer.check_equal_weights()

    with pytest.raises(UserError, match="different weights"):
        together(2, drifted)


def test_statistics_over_processes_are_those_of_all_rows():
    values = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    weights = torch.tensor([3.0, 1.0, 0.0, 2.0, 4.0], dtype=torch.float64)
    white = whiten(values, weights, World())
    # mean (1 + 4) / 10 = 0.5, variance 0.25: ±1, and 0 for the row without weight
    torch.testing.assert_close(white, torch.tensor([-1.0, 1.0, 0.0, -1.0, 1.0], dtype=torch.float64), atol=1e-6, rtol=0)
    parts = together(2, lambda world: whiten(values[world.rank :: 2], weights[world.rank :: 2], world))
    assert torch.equal(parts[0], white[0::2])
    assert torch.equal(parts[1], white[1::2])
    others = leave_one_out_of_batch(values, weights > 0, World())
    assert others.tolist() == pytest.approx([2 / 3, 1 / 3, 0.5, 2 / 3, 1 / 3])
    parts = together(
        2, lambda world: leave_one_out_of_batch(values[world.rank :: 2], weights[world.rank :: 2] > 0, world)
    )
    assert torch.equal(parts[0], others[0::2])


def test_a_share_of_every_process_is_put_together_again():
    assert together(3, lambda world: world.together(world.share(8))) == [list(range(8))] * 3
    assert World().together(World().share(3)) == [0, 1, 2]


def test_buckets_hold_consecutive_tensors_of_one_type():
    tensors = [torch.zeros(3), torch.zeros(4), torch.zeros(9), torch.zeros(1, dtype=torch.float64), torch.zeros(2)]
    sizes = [[t.numel() for t in bucket] for bucket in buckets(tensors, elements=8)]
    assert sizes == [[3, 4], [9], [1], [2]]


def test_a_launcher_that_says_half_is_a_mistake(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UserError, match="RANK is not set"):
        join_world()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UserError, match="WORLD_SIZE is 'two'"):
        join_world()


def command(model: Path, out: Path, **changes) -> list[str]:
    flags = {"algo": "poise", "reward": f"{Path(__file__).parents[1] / 'odd.py'}:odd_length", **SETTINGS, **changes}
    words = [w for name, value in flags.items() for w in (f"--{name.replace('_', '-')}", str(value))]
    return ["-m", "vantage", "train", "--model", str(model), "--out", str(out), "--device", "cpu", *words]


def launched(arguments: list[str], size: int = 2) -> list[subprocess.Popen]:
    """The processes that torchrun would start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, *arguments], env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("how", [["--multi_gpu"], ["--use_fsdp", "--fsdp_version", "2"]], ids=["whole", "fsdp2"])
def test_accelerate_launches_two_processes_that_end_as_one_and_resume_as_one(how, small_model, tmp_path):
    # Steps 2 and 3 of one length: with the default schedule the rate would fall faster in the run of 2 steps.
    same = {"lr_schedule": "constant"}
    alone = [sys.executable, *command(small_model, tmp_path / "one", **same)]
    alone = subprocess.run(alone, capture_output=True, check=True)
    assert b"accuracy" in alone.stdout
    launcher = ["-m", "accelerate.commands.launch", *how, "--num_processes", "2", "--main_process_port", "0"]
    two = command(small_model, tmp_path / "two", steps=2, **same)
    done = subprocess.run([sys.executable, *launcher, *two], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("accuracy   ") == 1
    checkpoint = tmp_path / "two/checkpoints/step-000002"
    assert json.loads((checkpoint / "trainer.json").read_text())["processes"] == 2
    assert len(list(checkpoint.glob("optimizer.part-*"))) == (2 if "--use_fsdp" in how else 0)
    # On with one process and one step more.
    again = [*command(small_model, tmp_path / "two", **same), "--resume", "auto"]
    subprocess.run([sys.executable, *again], capture_output=True, check=True)
    expected = weights(tmp_path / "one/model")
    for name, found in weights(tmp_path / "two/model").items():
        torch.testing.assert_close(found, expected[name], rtol=0, atol=1e-4)
    two, one = rows(tmp_path / "two"), rows(tmp_path / "one")
    assert_same_run([two[0], two[1], two[3]], [one[0], one[1], one[3]])  # the run of 2 steps ended with an evaluation
    assert [r["step"] for r in two] == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_and_leaves_a_checkpoint_to_go_on_from(victim, small_model, tmp_path):
    out = tmp_path / "run"
    arguments = command(small_model, out, steps=100000, checkpoint_every=5, eval_every=0)
    processes = launched(arguments)
    deadline = time.time() + 60
    while not (out / "checkpoints/step-000005/COMPLETE").exists():
        assert time.time() < deadline
        assert all(p.poll() is None for p in processes), [p.stderr.read() for p in processes]
        time.sleep(0.05)
    processes[victim].send_signal(signal.SIGKILL)
    survivor = processes[1 - victim]
    _, complaint = survivor.communicate(timeout=240)
    assert survivor.returncode == 1
    last = complaint.strip().splitlines()[-1]
    assert last.startswith(f"vantage: process {1 - victim} of 2 lost the connection to another one in step ")
    assert "the newest checkpoint is " in last
    assert "--resume auto" in last
    assert "Traceback" not in complaint
    processes[victim].wait()
    step = int(newest(out / "checkpoints").name.removeprefix("step-"))
    if victim == 1:
        assert step >= len(rows(out)) - 2  # the main process has saved what was whole
    resumed = command(small_model, out, steps=step + 1, checkpoint_every=5, eval_every=0)
    subprocess.run([sys.executable, *resumed, "--resume", "auto"], capture_output=True, check=True)
    assert [r["step"] for r in rows(out)] == list(range(step + 2))
