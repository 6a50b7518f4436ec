"""Models that are dealt out over processes (FSDP2): one process's update, 1/N of the memory, checkpoints for any number."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.distributed.test_world import assert_same_run, launched
from tests.genac.made import save_schooled_critic
from tests.sharded import CASES, RESUMED, made, run, stepped, weights
from vantage.checkpoint import load_state
from vantage.config import TrainConfig
from vantage.distributed.dealt import rows_of
from vantage.distributed.sharding import Sharding, hollow
from vantage.distributed.world import World, join_world
from vantage.errors import UserError
from vantage.models.loading import load_policy


@pytest.fixture(scope="module")
def critic(tmp_path_factory):
    return save_schooled_critic(tmp_path_factory.mktemp("critic") / "schooled")


def two_processes(what: str, *arguments: Path) -> None:
    processes = launched(["-m", "tests.sharded", what, *map(str, arguments)])
    said = [process.communicate(timeout=1200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said[0][1][-3000:] + said[1][1][-3000:]


@pytest.mark.slow
def test_two_processes_that_share_the_models_give_the_update_of_one(small_model, critic, tmp_path):
    two_processes("updates", small_model, critic, tmp_path)
    for number, case in enumerate(CASES):
        trainer, rows = stepped(made(case, small_model, critic, tmp_path / "none"))
        expected, found = weights(trainer), load_file(tmp_path / f"{number}.safetensors")
        assert found.keys() == expected.keys(), case
        for name, whole in expected.items():
            tolerance = 3e-5 if name.startswith("policy.") else 2e-4  # steps are 1e-3; moments: in other units
            torch.testing.assert_close(
                found[name], whole, rtol=2e-3, atol=tolerance, msg=lambda m, at=(case, name): f"{at}: {m}"
            )
        assert_same_run(json.loads((tmp_path / f"{number}.json").read_text()), rows)
    for rank in (0, 1):
        for kind, (mine, all_) in json.loads((tmp_path / f"held-{rank}.json").read_text()).items():
            assert mine <= 0.51 * all_, kind
            assert all_ > 30000
    idle = [json.loads((tmp_path / f"idle-{rank}.json").read_text()) for rank in (0, 1)]
    assert max(idle) > 10  # passes that only keep step were needed, or the cases do not test them


@pytest.mark.slow
def test_runs_go_on_with_any_number_of_processes_and_leave_whole_models(small_model, critic, tmp_path):
    run(made("ppo", small_model, critic, tmp_path / "alone"))
    two_processes("runs", small_model, critic, tmp_path)
    for case in RESUMED:
        first, again = (tmp_path / f"{case}{more}" / "checkpoints" / "step-000003" for more in ("", " again"))
        assert_bit_identical(first, again)
    fewer_or_more_processes(small_model, critic, tmp_path)
    whole_models(small_model, critic, tmp_path)


def assert_bit_identical(first: Path, again: Path) -> None:
    """As many processes."""
    for part in ("optimizer", "estimator"):
        before, after = load_state(first / part, part), load_state(again / part, part)
        assert before.values == after.values
        assert set(before.tensors) == set(after.tensors)
        assert all(torch.equal(before.tensors[name], after.tensors[name]) for name in before.tensors)
    before, after = (load_file(path / "model/model.safetensors") for path in (first, again))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(list(first.glob("optimizer.part-*-of-0002.safetensors"))) == 2


def fewer_or_more_processes(model: Path, critic: Path, out: Path) -> None:
    alone = load_file(out / "alone/model/model.safetensors")
    run(made("ppo", model, critic, out / "shrunk", resume=str(out / "ppo/checkpoints/step-000001")))
    for path in (out / "shrunk", out / "grown", out / "ppo"):
        for name, found in load_file(path / "model/model.safetensors").items():
            torch.testing.assert_close(found, alone[name], rtol=0, atol=2e-5)
        found, expected = (load_file(p / "critic/model.safetensors") for p in (path, out / "alone"))
        assert all(torch.allclose(found[name], expected[name], rtol=0, atol=2e-5) for name in expected)


def whole_models(model: Path, critic: Path, out: Path) -> None:
    """With plain transformers, and as critics of other runs."""
    ids = torch.arange(3, 10)[None]
    before = AutoModelForCausalLM.from_pretrained(model)(ids).logits
    for folder in ("ppo/model", "adapters/model"):
        logits = AutoModelForCausalLM.from_pretrained(out / folder)(ids).logits
        assert not torch.equal(logits, before)
    trainer = run(made("adapters, exact kl to the base", model, critic, out / "one", steps=1))
    with torch.no_grad():
        torch.testing.assert_close(logits, trainer.policy.model(ids).logits, rtol=0, atol=1e-4)
    base = made("ppo", model, critic, out / "next")
    stepped(replace(base, algo=replace(base.algo, critic=str(out / "ppo"))))
    stepped(made(RESUMED[1], model, out / RESUMED[1] / "critic", out / "next"))


@pytest.mark.parametrize(
    ("config", "environment", "complaint"),
    [
        ({"sharding": "fsdp2"}, {}, "--sharding fsdp2: there is one process"),
        ({}, {"ACCELERATE_USE_FSDP": "true"}, "accelerate launch --use_fsdp: there is one process"),
    ],
)
def test_one_process_has_nothing_to_deal_out(config, environment, complaint, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=complaint):
        Sharding.of(TrainConfig(**config), World(), torch.device("cpu"))


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({}, "add --fsdp_version 2"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "--fsdp_offload_params true: not supported"),
        ({"FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"}, "use --gradient-checkpointing"),
    ],
)
def test_what_the_launcher_asks_for_in_vain_is_said(environment, complaint, monkeypatch):
    world = World()
    world.size = 2
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=complaint):
        Sharding.of(TrainConfig(), world, torch.device("cpu"))
    assert Sharding.of(TrainConfig(sharding="none"), world, torch.device("cpu")) is None


def test_under_accelerates_fsdp_every_process_reads_weights(monkeypatch):
    told = {
        "WORLD_SIZE": "2",
        "RANK": "1",
        "MASTER_ADDR": "a",
        "MASTER_PORT": "1",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("vantage.distributed.world.ProcessGroup", World)
    join_world()
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


def test_rows_are_cut_as_torch_cuts_them():
    whole = torch.arange(10).reshape(5, 2)
    assert [rows_of(whole, rank, 4).tolist() for rank in range(4)] == [
        [[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9]], [],
    ]  # fmt: skip


def test_a_hollow_copy_has_shapes_and_shared_weights_and_no_numbers(small_model):
    policy = load_policy(str(small_model), torch.device("cpu"))
    empty = hollow(policy.model)
    assert all(p.is_meta for p in empty.parameters())
    assert empty.lm_head.weight is empty.model.embed_tokens.weight
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in policy.model.named_parameters()}
    assert not any(p.is_meta for p in policy.model.parameters())
