"""A saved critic: loaded again to the bit, tied to what it was made for, refused in one line elsewhere."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.critics.made import POLICY, model_critic, state_critic, stirred
from tests.helpers import random_batch, small_policy
from vantage import TrainConfig, tiny
from vantage.critics import files
from vantage.critics.files import Card
from vantage.critics.model import ValueModel
from vantage.errors import UserError
from vantage.workload import Workload

TIED = {"tokenizer": "t", "verifier version": "sums 1", "prompt template": "p"}
CARD = Card("model", POLICY.hidden_size, (0.0, 1.0), False, None, TIED)


@pytest.fixture
def saved(tmp_path):
    critic = model_critic()
    stirred(critic)
    critic.head.begin(0.4)
    folder = tmp_path / "critic"
    files.save_critic(folder, CARD, critic.head, critic.model.trunk, POLICY.tokenizer)
    return folder, critic


def test_a_saved_critic_gives_the_same_values(saved):
    folder, critic = saved
    card = files.read_card(folder)
    assert card == CARD
    head = files.load_head(folder, card)
    assert bool(head.begun)
    critic.model.float()
    again = ValueModel(files.load_trunk(str(folder), POLICY.tokenizer), head)
    batch = random_batch()
    with torch.no_grad():
        assert torch.equal(again.head.value(again(batch)), critic.head.value(critic.model(batch)))
    assert again.head.weight.dtype == torch.float32


def test_a_run_stands_for_the_critic_that_it_left(saved):
    folder, _ = saved
    assert files.find_critic(str(folder.parent)) == files.find_critic(str(folder)) == folder
    assert files.find_critic(str(folder.parent.parent)) is None


def test_a_head_is_saved_without_a_trunk(tmp_path):
    critic = state_critic()
    stirred(critic)
    card = dataclasses.replace(CARD, kind="head", layer=3)
    files.save_critic(tmp_path / "critic", card, critic.head, None, POLICY.tokenizer)
    assert sorted(p.name for p in (tmp_path / "critic").iterdir()) == ["critic.json", "value_head.safetensors"]
    assert torch.equal(
        files.load_head(tmp_path / "critic", files.read_card(tmp_path / "critic")).weight, critic.head.weight
    )


MISFITS = {
    "tokenizer": (dataclasses.replace(CARD, tied={**TIED, "tokenizer": "u"}), "another tokenizer"),
    "verifier": (dataclasses.replace(CARD, tied={**TIED, "verifier version": "sums 2"}), "another verifier version"),
    "template": (dataclasses.replace(CARD, tied={**TIED, "prompt template": "q"}), "another prompt template"),
    "loss": (dataclasses.replace(CARD, probability=True), r"--ppo\.loss mse or clipped"),
    "range": (dataclasses.replace(CARD, reward_range=(-1.0, 1.0)), "rewards in"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_critic_of_something_else_is_refused_in_one_line(case, saved):
    wanted, expected = MISFITS[case]
    with pytest.raises(UserError, match=expected) as found:
        files.refuse_misfit(saved[0], CARD, wanted)
    assert str(found.value).startswith("--ppo.critic ")
    assert "\n" not in str(found.value)
    files.refuse_misfit(saved[0], CARD, CARD)


DAMAGE = {
    "no JSON": (lambda f: (f / "critic.json").write_text("{"), "critic.json is damaged"),
    "a part missing": (lambda f: (f / "critic.json").write_text('{"format": 1}'), "critic.json is damaged"),
    "another format": (lambda f: (f / "critic.json").write_text('{"format": 9}'), "has format 9, this version reads 1"),
    "no head": (lambda f: (f / "value_head.safetensors").unlink(), "value_head.safetensors is missing or damaged"),
    "torn head": (lambda f: (f / "value_head.safetensors").write_bytes(b"?"), "value_head.safetensors is missing or damaged"),
    "torn trunk": (lambda f: (f / "model.safetensors").write_bytes(b"?"), "can not be loaded"),
}  # fmt: skip


def loaded(folder):
    return files.load_head(folder, files.read_card(folder)), files.load_trunk(str(folder), POLICY.tokenizer)


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_refused_in_one_line(case, saved):
    folder, _ = saved
    damage, expected = DAMAGE[case]
    damage(folder)
    with pytest.raises(UserError, match=expected) as found:
        loaded(folder)
    assert "\n" not in str(found.value)


def test_a_model_of_another_tokenizer_is_refused(tmp_path, saved):
    other = tiny.tokenizer()
    other.add_tokens(["<another>"])
    with pytest.raises(UserError, match="its tokenizer is not the policy's"):
        files.load_trunk(str(saved[0]), other)
    network, tokenizer = tiny.fresh(0, hidden_size=16, num_hidden_layers=1)
    network.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    assert files.load_trunk(str(tmp_path / "model"), POLICY.tokenizer).config.hidden_size == 16
    with pytest.raises(UserError, match=r"--ppo\.critic .*tokenizer is not"):
        files.load_trunk(str(tmp_path / "model"), other)
    with pytest.raises(UserError, match=r"--ppo\.critic \./nowhere: there is no such folder"):
        files.load_trunk("./nowhere", POLICY.tokenizer)


def test_ties_follow_tokenizer_task_reward_and_template(tmp_path):
    def right(completions, **kwargs):
        return [0.0 for _ in completions]

    config, work = TrainConfig(), Workload.of("sums")
    first = files.ties(POLICY.tokenizer, config, work)
    assert files.ties(tiny.tokenizer(), config, Workload.of("sums")) == first
    other = tiny.tokenizer()
    other.add_tokens(["<another>"])
    other.chat_template = "{{ messages }}"
    changed = {
        "tokenizer": files.ties(other, config, work),
        "prompt template": files.ties(POLICY.tokenizer, TrainConfig(chat_template="never"), work),
        "verifier version": files.ties(POLICY.tokenizer, config, Workload.of("sums", functions=[right])),
    }
    assert all(found[name] != first[name] for name, found in changed.items())
    (tmp_path / "r.py").write_text("def right(completions, **kwargs):\n    return [0.0] * len(completions)\n")
    spec = f"{tmp_path / 'r.py'}:right"
    before = files.ties(POLICY.tokenizer, TrainConfig(reward=(spec,)), Workload.of("sums", (spec,)))
    (tmp_path / "r.py").write_text("def right(completions, **kwargs):\n    return [1.0] * len(completions)\n")
    after = files.ties(POLICY.tokenizer, TrainConfig(reward=(spec,)), Workload.of("sums", (spec,)))
    assert before["verifier version"] != after["verifier version"]


def test_adapters_are_merged_into_what_is_saved(tmp_path):
    peft = pytest.importorskip("peft")
    policy = small_policy(dtype=torch.float32)
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]), policy.model)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
    critic = model_critic(policy=policy)
    stirred(critic)
    files.save_critic(tmp_path / "critic", CARD, critic.head, critic.model.trunk, policy.tokenizer)
    again = ValueModel(files.load_trunk(str(tmp_path / "critic"), policy.tokenizer), critic.head)
    batch = random_batch()
    with torch.no_grad():
        torch.testing.assert_close(again(batch), critic.model(batch), atol=1e-4, rtol=1e-4)
    assert any("lora" in name for name, _ in critic.model.named_parameters())  # the critic itself goes on with adapters
