"""PPO: advantages by the sheet, unbiasedness by enumeration, value pretraining, resume, saved critics, mistakes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.critics.made import POLICY, SETTINGS, model_critic, state_critic, stirred
from tests.helpers import random_batch, small_policy
from tests.test_enumerable import odd_world
from vantage import TrainConfig, Trainer
from vantage.config import resolve
from vantage.critics.building import critic_settings
from vantage.critics.model import ValueHead, ValueModel, copied_trunk
from vantage.critics.token import ModelCritic
from vantage.distributed.world import World
from vantage.enumerable import EnumerableWorld
from vantage.errors import UserError
from vantage.estimators.base import Setup
from vantage.estimators.ppo import Ppo, PpoEstimator, is_flat
from vantage.update import PolicyUpdate

F64 = torch.float64


def estimator(critic=None, **options) -> PpoEstimator:
    critic = critic or model_critic()
    return PpoEstimator(Ppo(**options), Setup(3, 32, 1, (0.0, 1.0), max_new_tokens=64), critic)


class Asked:
    """What `query` needs of `Collected`."""

    def __init__(self, batch):
        self.batch = batch


def queried(found: PpoEstimator, batch):
    return dataclasses.replace(batch, queried=found.query(Asked(batch)).reads)


def step(found: PpoEstimator, batch):
    batch = queried(found, batch)
    estimate = found.advantages(batch, {})
    return estimate, found.learn(batch, {}, estimate)


def with_rewards(rewards, groups=None):
    batch = random_batch(groups=len(rewards), group=1)
    outcome_B = torch.tensor(rewards, dtype=F64)
    return dataclasses.replace(
        batch, outcome_B=outcome_B, reward_B=outcome_B, scorable_B=outcome_B.isfinite(),
        group_B=batch.group_B if groups is None else torch.tensor(groups),
    )  # fmt: skip


# --- advantages -------------------------------------------------------------------------------------------------------


def test_t7_before_anything_is_known_the_value_is_the_mean_of_all_other_rollouts():
    batch = with_rewards([1.0, 0, 0, 1, 0, 0, 0, 1])
    found = estimator(whiten="none")
    advantage_BT = found.advantages(queried(found, batch), {}).advantage_BT
    first = advantage_BT[:, 0].tolist()
    assert first[:2] == pytest.approx([0.71428571, -0.42857143], abs=1e-8)
    assert (advantage_BT == advantage_BT[:, :1] * batch.response_mask_BT).all()
    alone = with_rewards([1.0])
    assert estimator(whiten="none").query(Asked(alone)).reads["start"].tolist() == [0.5]


def given(values, rewards, lengths, **options):
    """The estimate where a critic has said `values` [B, T]."""
    batch = with_rewards(rewards)
    batch = dataclasses.replace(
        batch, response_ids=[[5] * n for n in lengths], queried={"value_MT": torch.tensor(values, dtype=F64)}
    )
    return estimator(**{"whiten": "none", **options}).advantages(batch, {})


def test_t8_values_become_advantages_by_lambda():
    values = [[0.5, 0.4, 0.7, 0.6]]
    assert given(values, [1.0], [4]).advantage_BT[0].tolist() == pytest.approx([0.5, 0.6, 0.3, 0.4])
    found = given(values, [1.0], [4], lam_actor=0.95)
    assert found.advantage_BT[0].tolist() == pytest.approx([0.4377, 0.566, 0.28, 0.4])
    assert found.value_BT.tolist() == values


def test_length_adaptive_lambda_is_each_responses_own():
    values, rewards, lengths = [[0.5, 0.4, 0.7, 0.6], [0.5, 0.4, 0.0, 0.0]], [1.0, 1.0], [4, 2]
    found = given(values, rewards, lengths, length_adaptive_alpha=0.5)  # λ = 1 − 1/2 and 1 − 1/1
    assert found.advantage_BT[0].tolist() == pytest.approx(
        given(values, rewards, lengths, lam_actor=0.5).advantage_BT[0].tolist()
    )
    assert found.advantage_BT[1].tolist() == pytest.approx([-0.1, 0.6, 0, 0])


def test_whitening_is_over_all_tokens_and_may_only_divide():
    values, rewards, lengths = [[0.5, 0.4, 0.7], [0.3, 0.0, 0.0]], [1.0, 0.0], [3, 1]
    raw = torch.tensor([0.5, 0.6, 0.3, -0.3], dtype=F64)
    inside = torch.tensor([[True, True, True], [True, False, False]])
    full = given(values, rewards, lengths, whiten="full").advantage_BT
    torch.testing.assert_close(full[inside], (raw - raw.mean()) / (raw.var() + 1e-8).sqrt())
    scaled = given(values, rewards, lengths, whiten="scale").advantage_BT
    torch.testing.assert_close(scaled[inside], raw / (raw.var() + 1e-8).sqrt())
    assert (full[~inside] == 0).all()
    assert (scaled[~inside] == 0).all()


def test_what_can_not_be_scored_has_no_advantage_and_no_part_in_whitening():
    values, lengths = [[0.5, 0.4], [0.3, 0.2], [0.1, 0.9]], [2, 2, 2]
    found = given(values, [1.0, float("nan"), 0.0], lengths, whiten="full").advantage_BT
    without = given([values[0], values[2]], [1.0, 0.0], [2, 2], whiten="full").advantage_BT
    assert found[1].tolist() == [0, 0]
    torch.testing.assert_close(found[[0, 2]], without)


def test_the_policy_is_paid_the_shaped_reward_and_the_critic_learns_the_raw_outcome():
    batch = with_rewards([1.0, 0.0, 1.0, 0.0])
    shaped = dataclasses.replace(batch, reward_B=batch.reward_B - 0.5)
    one, other = (estimator(whiten="none") for _ in range(2))
    plain, paid = step(one, batch)[0], step(other, shaped)[0]
    mask = batch.response_mask_BT
    torch.testing.assert_close(paid.advantage_BT, plain.advantage_BT - 0.5 * mask)
    assert all(torch.equal(a, b) for a, b in zip(one.critic.model.parameters(), other.critic.model.parameters()))


@pytest.mark.parametrize("first", [True, False])
def test_a_rollouts_own_reward_is_in_none_of_its_values(first):
    found = estimator(whiten="none")
    if not first:
        step(found, random_batch(seed=1))
    batch = random_batch()
    before = found.advantages(queried(found, batch), {}).value_BT
    for row in (0, 5):
        outcome_B = batch.outcome_B.clone()
        outcome_B[row] = 1 - outcome_B[row]
        flipped = dataclasses.replace(batch, outcome_B=outcome_B, reward_B=outcome_B)
        after = found.advantages(queried(found, flipped), {}).value_BT
        assert torch.equal(after[row], before[row])
        assert torch.equal(after, before) == (not first)


def test_the_critic_of_the_next_batch_has_learned_from_this_one():
    found, batch = estimator(), random_batch()
    errors = []
    for _ in range(6):
        metrics = step(found, batch)[1]
        errors.append(1 - metrics["critic/explained_variance"])
    assert errors[-1] < 0.7 * errors[1] < errors[0]
    assert metrics["critic/within_response_std"] > 0
    assert set(metrics) == {
        "critic/loss", "critic/grad_norm", "critic/learning_rate", "critic/skipped_updates",
        "critic/explained_variance", "critic/within_response_std", "critic/warming_up",
    }  # fmt: skip


def test_lambda_of_the_critic_moves_its_targets_towards_its_own_later_values(monkeypatch):
    seen = {}
    for lam in (1.0, 0.5):
        critic = model_critic()
        stirred(critic, 0.02)
        critic.head.begin(0.5)
        found = estimator(critic, lam_critic=lam)
        batch = queried(found, random_batch())
        estimate = found.advantages(batch, {})
        monkeypatch.setattr(critic, "fit", lambda b, r, targets, lam=lam: seen.setdefault(lam, targets) and {})
        found.learn(batch, {}, estimate)
    mask, value = batch.response_mask_BT, estimate.value_BT
    outcome_BT = batch.outcome_B[:, None].expand(mask.shape)
    torch.testing.assert_close(seen[1.0].target_BX[mask], outcome_BT[mask])
    for row, length in enumerate(batch.length_B.tolist()):
        expected = float(batch.outcome_B[row])
        for place in reversed(range(length)):  # G_t = (1 − λ) V_{t+1} + λ G_{t+1}, behind the end R
            if place < length - 1:
                expected = 0.5 * float(value[row, place + 1]) + 0.5 * expected
            assert float(seen[0.5].target_BX[row, place]) == pytest.approx(expected)


# --- unbiasedness by enumeration --------------------------------------------------------------------------------------


class Asking:
    """An update whose batches have been queried before."""

    def __init__(self, update: PolicyUpdate, shift: int = 0):
        self.update, self.policy, self.shift = update, update.policy, shift

    def gradient(self, batch):
        batch = queried(self.update.estimator, batch)
        if self.shift:  # values of the states behind the tokens, as a careless critic would have them
            later = [batch.prompt_ids, [[*y, 0] for y in batch.response_ids]]
            longer = dataclasses.replace(batch, prompt_ids=later[0], response_ids=later[1])
            value = self.update.estimator.critic.values(longer)[:, 1:]
            batch = dataclasses.replace(batch, queried={"value_MT": value})
        return self.update.gradient(batch)


def bias(world: EnumerableWorld, shift: int = 0, **options) -> float:
    """‖E[gradient] − ∇J‖ / ‖∇J‖ and the largest entry of the difference, for a critic that is far from V."""
    policy = world.policy()
    head = ValueHead(policy.hidden_size, (0.0, 1.0))
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-0.6, 0.5, policy.hidden_size))
    head.begin(0.4)
    critic = ModelCritic(ValueModel(copied_trunk(policy), head), SETTINGS, World(), 1000)
    found = estimator(critic, whiten="none", **options)
    config = resolve(
        TrainConfig(algo=found.options, aggregation="seq-mean-token-sum", max_grad_norm=0), max_new_tokens=3, stop=(),
        reward_range=(0.0, 1.0),
    )  # fmt: skip
    update = PolicyUpdate(policy, found, config)
    exact = world.exact_gradient(policy)
    error = world.expected_gradient(Asking(update, shift), 1) - exact
    return float(error.abs().max()), float(error.norm() / exact.norm())


def test_with_lambda_1_any_fixed_critic_of_prefixes_is_unbiased():
    largest, _ = bias(odd_world())
    assert largest < 1e-12


@pytest.mark.parametrize("lam", [0.95, 0.5, 0.0])
def test_with_lambda_below_1_the_critics_error_becomes_bias(lam):
    share = bias(odd_world(), lam_actor=lam)[1]
    assert share > {0.95: 0.01, 0.5: 0.1, 0.0: 0.2}[lam]


def test_a_critic_that_saw_the_token_would_be_biased():
    assert bias(odd_world(), shift=1)[1] > 0.05


# --- cut in every way -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whiten", ["none", "full"])
def test_a_head_gives_the_same_gradient_from_one_forward_pass_or_two_and_any_micro_batch(whiten):
    found = []
    for changes in ({}, {"forward": "prepass"}, {"tokens_per_microbatch": 45}):
        critic = state_critic()
        stirred(critic, 0.02)
        critic.head.begin(0.5)
        made = estimator(critic, whiten=whiten)
        config = resolve(TrainConfig(algo=made.options, **changes), max_new_tokens=16, stop=(), reward_range=(0.0, 1.0))
        policy = small_policy()
        policy.model.load_state_dict(POLICY.model.state_dict())
        update = PolicyUpdate(policy, made, config)
        result = update.gradient(queried(made, random_batch()))
        assert result.reads["value_MT"].shape == result.estimate.value_BT.shape
        found.append(torch.cat([p.grad.flatten() for p in policy.model.parameters()]))
        made.learn(random_batch(), result.reads, result.estimate)
        found[-1] = torch.cat([found[-1], critic.head.weight.detach().double()])
    assert found[0].abs().max() > 1e-5
    torch.testing.assert_close(found[1], found[0], atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(found[2], found[0], atol=1e-7, rtol=1e-6)


# --- runs -------------------------------------------------------------------------------------------------------------


def even(completions, **kwargs):
    """The share of characters with an even code: every token says a part of it."""
    return [sum(ord(x) % 2 == 0 for x in c) / max(1, len(c)) for c in completions]


def trainer(model: Path, out: Path, resume: str = "never", reward=even, changes=None, **options) -> Trainer:
    settings = {
        "model": str(model), "out": str(out), "steps": 4, "rollouts_per_step": 64, "max_new_tokens": 3, "eval_every": 0,
        "eval_problems": 4, "checkpoint_every": 0, "samples_every": 0, "learning_rate": 1e-3, "device": "cpu",
        "lr_schedule": "constant", "top_k": 4,
    }  # fmt: skip
    algo = Ppo(**{"critic_learning_rate": 1e-2, "critic_minibatches": 4, **options})
    return Trainer(TrainConfig(algo=algo, resume=resume, **(settings | (changes or {}))), reward_funcs=reward)


def rows(out: Path) -> list[dict]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if not k.startswith(("time/", "throughput/", "mem/"))} for r in found]


@pytest.mark.parametrize("critic", ["copy", "head"])
def test_value_pretraining_rests_the_policy_and_lowers_the_value_error_of_its_first_step(critic, small_model, tmp_path):
    cold = trainer(small_model, tmp_path / "cold", critic=critic)
    warm = trainer(small_model, tmp_path / "warm", critic=critic, value_warmup_steps=8, changes={"steps": 9})
    start = {k: v.clone() for k, v in warm.policy.model.state_dict().items()}
    first = [cold.train_step(n).row for n in (1, 2)][-1]
    pretraining = [warm.train_step(n).row for n in range(1, 9)]
    assert all(torch.equal(v, start[k]) for k, v in warm.policy.model.state_dict().items())
    assert [row["critic/warming_up"] for row in pretraining] == [1.0] * 8
    assert warm.update.updates_done == 0
    row = warm.train_step(9).row
    assert row["critic/warming_up"] == 0
    assert any(not torch.equal(v, start[k]) for k, v in warm.policy.model.state_dict().items())
    assert row["critic/explained_variance"] > first["critic/explained_variance"] + 0.08


def test_pretraining_ends_early_when_explained_variance_is_flat():
    gains = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]
    assert not is_flat(gains, 2)
    assert is_flat([*gains, 0.5, 0.5, 0.5], 2)
    assert not is_flat([0.5, 0.5, 0.5], 2)
    assert not is_flat([0.5] * 20, 0)
    found = estimator(model_critic(dataclasses.replace(SETTINGS, learning_rate=1e-12)), value_warmup_steps=50,
                      value_warmup_patience=2)  # fmt: skip
    resting = []
    for _ in range(6):
        resting.append(not found.update_policy)
        step(found, random_batch())
    assert resting == [True] * 5 + [False]  # the first number is that of the mean of the others, still below


@pytest.mark.parametrize("critic", ["copy", "head"])
def test_a_resumed_run_ends_as_the_one_that_went_through(critic, small_model, tmp_path):
    options = {"critic": critic, "value_warmup_steps": 3, "critic_lr_schedule": "linear"}
    changes = {"checkpoint_every": 2, "keep_checkpoints": 0}
    trainer(small_model, tmp_path / "whole", changes=changes, **options).train()
    shutil.copytree(tmp_path / "whole" / "checkpoints", tmp_path / "again" / "checkpoints")
    for name in ("metrics.jsonl", "config.yaml"):
        shutil.copy(tmp_path / "whole" / name, tmp_path / "again" / name)
    middle = tmp_path / "again" / "checkpoints" / "step-000002"
    resumed = trainer(small_model, tmp_path / "again", resume=str(middle), changes=changes, **options)
    resumed.train()
    assert json.dumps(rows(tmp_path / "again")) == json.dumps(rows(tmp_path / "whole"))
    for name in ("model/model.safetensors", "critic/value_head.safetensors"):
        expected, found = (load_file(tmp_path / run / name) for run in ("whole", "again"))
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_run_starts_from_the_critic_of_another_without_its_optimizer(small_model, tmp_path):
    trainer(small_model, tmp_path / "first", changes={"steps": 8, "learning_rate": 1e-9}).train()
    second = trainer(small_model, tmp_path / "second", critic=str(tmp_path / "first"))
    critic = second.estimator.critic
    assert bool(critic.head.begun)
    assert not critic.training.optimizer.state
    saved = load_file(tmp_path / "first" / "critic" / "value_head.safetensors")
    assert torch.equal(critic.head.weight.detach(), saved["weight"])
    row = second.train_step(1).row
    assert row["critic/explained_variance"] > 0  # a new one would know nothing yet


def test_another_model_of_the_same_tokenizer_may_be_the_critic(small_model, tmp_path):
    from vantage import tiny

    network, tokenizer = tiny.fresh(5, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
                                    num_key_value_heads=1, head_dim=8)  # fmt: skip
    network.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    run = trainer(small_model, tmp_path / "run", critic=str(tmp_path / "other"))
    assert run.estimator.critic.model.trunk.config.hidden_size == 16
    metrics = [run.train_step(n).row for n in (1, 2)][-1]
    assert metrics["critic/grad_norm"] > 0
    network.config.max_position_embeddings = 3
    network.save_pretrained(tmp_path / "short")
    tokenizer.save_pretrained(tmp_path / "short")
    with pytest.raises(UserError, match="it has 3 positions"):
        trainer(small_model, tmp_path / "run", critic=str(tmp_path / "short"))


def test_a_saved_critic_that_does_not_fit_the_run_is_refused(small_model, tmp_path):
    def other(completions, **kwargs):
        return [0.0] * len(completions)

    for critic in ("copy", "head"):
        trainer(small_model, tmp_path / critic, critic=critic, changes={"steps": 1}).train()
    saved = str(tmp_path / "copy" / "critic")
    with pytest.raises(UserError, match="another verifier version"):
        trainer(small_model, tmp_path / "run", critic=saved, reward=other)
    with pytest.raises(UserError, match=r"--ppo\.loss mse or clipped"):
        trainer(small_model, tmp_path / "run", critic=saved, loss="bce")
    with pytest.raises(UserError, match="rewards in"):
        trainer(small_model, tmp_path / "run", critic=saved, changes={"reward_range": (0.0, 2.0)})
    with pytest.raises(UserError, match=r"--ppo\.head-layer is for --ppo\.critic head"):
        trainer(small_model, tmp_path / "run", critic=saved, head_layer=1)
    with pytest.raises(UserError, match="its head reads layer 2"):
        trainer(small_model, tmp_path / "run", critic=str(tmp_path / "head"), head_layer=1)
    again = trainer(small_model, tmp_path / "run", critic=str(tmp_path / "head"))
    assert (again.estimator.critic.kind, again.estimator.critic.layers) == ("head", (2,))


# --- settings ---------------------------------------------------------------------------------------------------------

WRONG = {
    "--ppo.lam-actor is 1.5": {"lam_actor": 1.5},
    "--ppo.lam-critic is -0.1": {"lam_critic": -0.1},
    "--ppo.gamma is nan": {"gamma": float("nan")},
    "--ppo.value-clip is 0": {"value_clip": 0.0},
    "--ppo.critic-learning-rate is inf": {"critic_learning_rate": float("inf")},
    "--ppo.critic-epochs is 0": {"critic_epochs": 0},
    "--ppo.critic-minibatches is 0": {"critic_minibatches": 0},
    "--ppo.head-tokens is 0": {"head_tokens": 0},
    "--ppo.length-adaptive-alpha is -1": {"length_adaptive_alpha": -1.0},
    "--ppo.value-warmup-steps is -1": {"value_warmup_steps": -1},
    "--ppo.lam-actor is 0.9, but --ppo.length-adaptive-alpha": {"lam_actor": 0.9, "length_adaptive_alpha": 0.05},
    "--ppo.whiten-values": {"whiten_values": True, "loss": "bce"},
    "--ppo.critic is empty": {"critic": ""},
    "--ppo.head-layer is for --ppo.critic head": {"head_layer": 2},
}


@pytest.mark.parametrize("expected", WRONG)
def test_a_wrong_option_is_one_line_that_names_it(expected):
    with pytest.raises(UserError) as found:
        Ppo(**WRONG[expected])
    assert str(found.value).startswith(expected)
    assert "\n" not in str(found.value)


def test_pretraining_must_leave_steps_for_the_policy():
    with pytest.raises(UserError, match=r"--ppo\.value-warmup-steps is 10, of --steps 10 none is left"):
        TrainConfig(algo=Ppo(value_warmup_steps=10), steps=10)


def test_a_lambda_that_no_reward_survives_is_warned_about():
    def said(**options):
        config = resolve(TrainConfig(algo=Ppo(**options)), max_new_tokens=1024, stop=(), reward_range=(0.0, 1.0))
        return list(config.algo.warnings(config))

    assert "2e-23 of the reward reaches the first" in said(lam_actor=0.95)[0]
    assert said() == said(length_adaptive_alpha=0.05) == []
    assert said(gamma=0.9)


def test_the_critics_learning_rate_is_ten_times_the_policys_unless_given():
    config = dataclasses.replace(TrainConfig(steps=10), learning_rate=1e-6)
    assert critic_settings(Ppo(), config).learning_rate == pytest.approx(1e-5)
    assert critic_settings(Ppo(), dataclasses.replace(config, learning_rate=1.0)).learning_rate == 3e-4
    assert critic_settings(Ppo(), config, 128).learning_rate == pytest.approx(0.04 / 128)
    assert critic_settings(Ppo(critic_learning_rate=3e-4), config, 128).learning_rate == 3e-4
    assert critic_settings(Ppo(critic_epochs=2), config).updates_total == 10 * 2 * 8


def test_all_combinations_of_the_losses_options_train(small_model, tmp_path):
    for critic, loss, whiten in itertools.product(("copy", "head"), ("mse", "clipped", "bce"), ("none", "full")):
        name = f"{critic}-{loss}-{whiten}"
        run = trainer(small_model, tmp_path / name, critic=critic, loss=loss, whiten=whiten, lam_critic=0.9)
        found = [run.train_step(n).row for n in (1, 2)][-1]
        assert all(v == v for k, v in found.items() if k.startswith(("critic/", "policy/"))), (name, found)
