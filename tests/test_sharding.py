"""Models that are dealt out over processes (FSDP2): one process's update, 1/N of the memory, checkpoints for any number."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.genac.made import save_schooled_critic
from tests.sharded import CASES, made, run, stepped, weights
from tests.test_distributed import assert_same_run, launched
from vantage.checkpoint import load_state
from vantage.config import TrainConfig
from vantage.dealt import rows_of
from vantage.distributed import World
from vantage.errors import UserError
from vantage.loading import load_policy
from vantage.sharding import Sharding, hollow

RESUMED = ("ppo", "genac, a critic that moves the policy")


@pytest.fixture(scope="module")
def critic(tmp_path_factory):
    return save_schooled_critic(tmp_path_factory.mktemp("critic") / "schooled")


@pytest.fixture(scope="module")
def out(small_model, critic, tmp_path_factory) -> Path:
    """What two processes have left, and one that went before."""
    folder = tmp_path_factory.mktemp("sharded")
    run(made("ppo", small_model, critic, folder / "alone"))
    processes = launched(["-m", "tests.sharded", str(small_model), str(critic), str(folder)])
    said = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said[0][1][-3000:] + said[1][1][-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_that_share_the_models_give_the_update_of_one(case, small_model, critic, out, tmp_path):
    trainer, rows = stepped(made(case, small_model, critic, tmp_path / "none"))
    number = list(CASES).index(case)
    expected, found = weights(trainer), load_file(out / f"{number}.safetensors")
    assert found.keys() == expected.keys()
    for name, whole in expected.items():
        tolerance = 2e-5 if name.startswith("policy.") else 2e-4  # moments, buffers: in other units
        torch.testing.assert_close(found[name], whole, rtol=2e-3, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
    assert_same_run(json.loads((out / f"{number}.json").read_text()), rows)


@pytest.mark.slow
def test_each_process_holds_its_share_of_weights_and_optimizer(out):
    for rank in (0, 1):
        for kind, (mine, all_) in json.loads((out / f"held-{rank}.json").read_text()).items():
            assert mine <= 0.51 * all_, kind
            assert all_ > 30000
    idle = [json.loads((out / f"idle-{rank}.json").read_text()) for rank in (0, 1)]
    assert max(idle) > 10  # passes that only keep step were needed, or the cases do not test them


@pytest.mark.slow
@pytest.mark.parametrize("case", RESUMED)
def test_a_run_goes_on_bit_by_bit_with_as_many_processes(case, out):
    first, again = (out / f"{case}{more}" / "checkpoints" / "step-000003" for more in ("", " again"))
    for part in ("optimizer", "estimator"):
        before, after = load_state(first / part, part), load_state(again / part, part)
        assert before.values == after.values
        assert set(before.tensors) == set(after.tensors)
        assert all(torch.equal(before.tensors[name], after.tensors[name]) for name in before.tensors)
    before, after = (load_file(path / "model/model.safetensors") for path in (first, again))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(list(first.glob("optimizer.part-*-of-0002.safetensors"))) == 2


@pytest.mark.slow
def test_a_run_goes_on_with_fewer_or_more_processes(small_model, critic, out, tmp_path):
    alone = load_file(out / "alone/model/model.safetensors")
    shrunk = made("ppo", small_model, critic, tmp_path / "shrunk", resume=str(out / "ppo/checkpoints/step-000001"))
    run(shrunk)
    for path in (tmp_path / "shrunk", out / "grown", out / "ppo"):
        for name, found in load_file(path / "model/model.safetensors").items():
            torch.testing.assert_close(found, alone[name], rtol=0, atol=2e-5)
        found, expected = (load_file(p / "critic/model.safetensors") for p in (path, out / "alone"))
        assert all(torch.allclose(found[name], expected[name], rtol=0, atol=2e-5) for name in expected)


@pytest.mark.slow
def test_what_a_run_leaves_loads_with_plain_transformers(small_model, critic, out, tmp_path):
    ids = torch.arange(3, 10)[None]
    for folder in ("ppo/model", "adapters/model"):
        logits = AutoModelForCausalLM.from_pretrained(out / folder)(ids).logits
        assert not torch.equal(logits, AutoModelForCausalLM.from_pretrained(small_model)(ids).logits)
    trainer = run(made("adapters, exact kl to the base", small_model, critic, tmp_path / "one", steps=1))
    with torch.no_grad():
        torch.testing.assert_close(logits, trainer.policy.model(ids).logits, rtol=0, atol=1e-4)
    base = made("ppo", small_model, critic, tmp_path / "next")
    stepped(replace(base, algo=replace(base.algo, critic=str(out / "ppo"))))
    genac = made(RESUMED[1], small_model, out / RESUMED[1] / "critic", tmp_path / "next")
    assert not stepped(genac)[0].estimator.begun.card("", stepped(genac)[0].estimator.actor)["stage"]


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
