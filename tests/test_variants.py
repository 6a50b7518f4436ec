"""DAPO, Dr. GRPO and the variants of the objective: TRL's numbers on the same model, tokens and rewards, and cases by hand."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers import SMALL, random_batch, small_policy
from tests.test_objectives import trl_trainer
from vantage import Dapo, DrGrpo, Grpo, Reinforce, Rloo, TrainConfig, tiny
from vantage.batch import Batch, pad
from vantage.config import resolve
from vantage.errors import UserError
from vantage.estimators.base import Setup
from vantage.objectives import (
    Objective,
    capped_weights,
    clipped_sequences,
    clipped_surrogate,
    kl_penalty,
    sampled_kl,
    sequence_ratio,
)  # fmt: skip
from vantage.policy import Policy, divergence
from vantage.shaping import overlong_penalty
from vantage.update import PolicyUpdate

LONGEST = 9
SETUP = Setup(3, 32, 2, (0.0, 1.0))


def f64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def resolved(**settings: object) -> TrainConfig:
    config = TrainConfig(max_new_tokens=LONGEST, max_grad_norm=0.0, **settings)
    return resolve(config, max_new_tokens=None, stop=(), reward_range=(0.0, 1.0))


def policy32() -> Policy:
    model, tokenizer = tiny.fresh(0, **SMALL)
    return Policy(model, tokenizer)


def rollouts(policy: Policy) -> Batch:
    """Six groups of two with mixed rewards, old log-probs off the current ones, two truncated responses."""
    batch = random_batch(seed=3)
    batch = replace(batch, response_ids=[ids[:LONGEST] for ids in batch.response_ids])
    outcome = f64([1, 0, 1, 1, 0, 1, 0, 0, 1, 0, 0, 1])
    with torch.no_grad():
        logp = policy.forward(batch).logp_MT
    shift = 0.4 * torch.randn(logp.shape, generator=torch.Generator().manual_seed(1))
    truncated = torch.tensor([len(ids) == LONGEST and ids[-1] != 1 for ids in batch.response_ids])
    assert truncated.any()
    assert not truncated.all()
    return replace(
        batch, outcome_B=outcome, reward_B=outcome, old_logp_BT=(logp + shift) * batch.response_mask_BT,
        truncated_B=truncated,
    )  # fmt: skip


def expected_advantages(batch: Batch, scaled: bool) -> torch.Tensor:
    pairs = batch.reward_B.reshape(-1, 2)
    centred = pairs - pairs.mean(1, keepdim=True)
    return (centred / (pairs.std(1, keepdim=True) + 1e-4) if scaled else centred).flatten()


CASES = {
    "dapo": (Dapo(), {}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "dr_grpo": (DrGrpo(), {}, {"loss_type": "dr_grpo"}),
    "grpo": (Grpo(), {}, {"loss_type": "grpo"}),
    "gspo": (
        Grpo(), {"policy_loss": "gspo", "clip_low": 0.02, "clip_high": 0.03},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.02, "epsilon_high": 0.03},
    ),
    "cispo": (
        Grpo(), {"policy_loss": "cispo", "aggregation": "token-mean", "clip_high": 0.3},
        {"loss_type": "cispo", "epsilon_high": 1.3},
    ),
    "kl": (Grpo(), {"kl_coef": 0.3}, {"loss_type": "grpo", "beta": 0.3}),
    "kl without weighting": (
        Grpo(), {"kl_coef": 0.3, "kl_weighting": "none"},
        {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False},
    ),
    "masked dapo": (Dapo(), {"mask_truncated": True}, {"loss_type": "dapo", "epsilon_high": 0.28}),
    "masked dr_grpo": (DrGrpo(), {"mask_truncated": True}, {"loss_type": "dr_grpo"}),
    "masked grpo": (Grpo(), {"mask_truncated": True}, {"loss_type": "grpo"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_every_parameter_equals_trl(case: str, tmp_path: Path) -> None:
    algo, settings, theirs = CASES[case]
    policy = policy32()
    batch = rollouts(policy)
    reference = policy32()
    with torch.no_grad():
        for parameter in reference.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    config = resolved(algo=algo, overlong_buffer=0, **settings)
    update = PolicyUpdate(policy, algo.build(SETUP), config, reference if config.kl_coef else None)
    ours = update.gradient(batch)
    advantage = expected_advantages(batch, scaled=not isinstance(algo, DrGrpo))
    torch.testing.assert_close(ours.estimate.advantage_BT[:, 0], advantage, rtol=0, atol=1e-12)
    # With the whole response budget as constant, and truncated responses masked as TRL's own preparation does.
    mask = batch.response_mask_BT & batch.trained_B(config.mask_truncated)[:, None]
    widest = max(len(p) for p in batch.prompt_ids)
    prompts = torch.stack([torch.tensor([0] * (widest - len(p)) + list(p)) for p in batch.prompt_ids])
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": torch.stack([torch.tensor([0] * (widest - len(p)) + [1] * len(p)) for p in batch.prompt_ids]),
        "completion_ids": pad([torch.tensor(ids) for ids in batch.response_ids], mask.shape[1]),
        "completion_mask": mask.long(),
        "advantages": advantage.float(),
        "old_per_token_logps": batch.old_logp_BT,
        "num_items_in_batch": mask.sum(),
        "ref_per_token_logps": reference.forward(batch).logp_MT.detach(),
    }
    network = copy.deepcopy(policy.model)
    network.save_pretrained(tmp_path / "model")  # where TRL looks for its reference
    network.name_or_path = network.config._name_or_path = str(tmp_path / "model")
    trainer = trl_trainer(tmp_path, network, **theirs)
    model = trainer.model.eval()
    model.zero_grad(set_to_none=True)
    trainer.model.train()
    trainer._compute_loss(model, inputs).backward()
    moved = 0
    for (name, found), (_, expected) in zip(policy.model.named_parameters(), model.named_parameters()):
        moved += bool(expected.grad.abs().max() > 1e-4)
        torch.testing.assert_close(
            found.grad, expected.grad, rtol=2e-4, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert moved > 10


def test_overlong_penalty_equals_trl_s_soft_punishment() -> None:
    rewards = pytest.importorskip("trl.rewards")
    theirs = rewards.get_soft_overlong_punishment(max_completion_len=20, soft_punish_cache=5)
    lengths = torch.arange(0, 24)
    expected = -f64(theirs([[0] * int(n) for n in lengths]))
    torch.testing.assert_close(overlong_penalty(lengths, 20, 5), expected, rtol=0, atol=1e-12)
    assert overlong_penalty(lengths, 20, 0).eq(0).all()


def test_dapo_sets_the_four_parts_and_each_can_be_switched_off() -> None:
    config = resolved(algo=Dapo())
    assert (config.clip_low, config.clip_high, config.aggregation) == (0.2, 0.28, "token-mean")
    assert (config.group_filter, config.overlong_buffer) == ("equal", 2)
    config = resolved(
        algo=Dapo(), clip_high=0.2, aggregation="seq-mean-token-mean", group_filter="none", overlong_buffer=0
    )
    assert (config.clip_high, config.aggregation, config.group_filter, config.overlong_buffer) == (
        0.2, "seq-mean-token-mean", "none", 0,
    )  # fmt: skip
    assert (resolved(algo=Grpo()).group_filter, resolved(algo=Grpo()).overlong_buffer) == ("none", 0)
    assert resolved(algo=Rloo(), group_filter="equal", overlong_buffer=3).overlong_buffer == 3
    with pytest.raises(UserError, match="--group-filter equal needs groups"):
        resolved(algo=Reinforce(), group_filter="equal")


# --- by hand --------------------------------------------------------------------------------------------------------


def test_gspo_ratio_is_the_geometric_mean_of_the_response() -> None:
    logp, old = f64([[-1.0, -2.0, -9.0], [-0.5, 0.0, 0.0]]), f64([[-1.2, -1.4, 5.0], [-0.6, 3.0, 3.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    # (0.2 − 0.6) / 2 = −0.2 and 0.1, at every place of the row
    torch.testing.assert_close(sequence_ratio(logp, old, mask), f64([[-0.2] * 3, [0.1] * 3]))
    found = clipped_sequences(logp, old, f64([[1.0] * 3, [1.0] * 3]), mask, Objective(0.1, 0.05))
    torch.testing.assert_close(found.loss_MT[:, 0], f64([-math.exp(-0.2), -1.05]))
    assert found.clipped_MT[:, 0].tolist() == [False, True]


def test_cispo_keeps_the_gradient_of_a_clipped_token() -> None:
    logp = f64([[math.log(0.9), math.log(0.2)]]).requires_grad_()
    old = f64([[math.log(0.1), math.log(0.2)]])
    found = capped_weights(logp, old, f64([[2.0, -1.0]]), Objective(1.0, 4.0))
    (gradient,) = torch.autograd.grad(found.loss_MT.sum(), [logp])
    torch.testing.assert_close(gradient, f64([[-5.0 * 2.0, 1.0]]))  # the ratio 9 is capped at 5
    clipped = clipped_surrogate(logp, old, f64([[2.0, -1.0]]), Objective(1.0, 4.0))
    (gradient,) = torch.autograd.grad(clipped.loss_MT.sum(), [logp])
    assert gradient[0, 0] == 0
    assert found.clipped_MT.tolist() == [[True, False]]


@pytest.mark.parametrize(("estimator", "value"), [("k1", 0.2), ("k2", 0.02), ("k3", math.exp(-0.2) - 1 + 0.2)])
def test_sampled_kl_by_hand(estimator: str, value: float) -> None:
    torch.testing.assert_close(sampled_kl(f64([[-1.0]]), f64([[-1.2]]), estimator), f64([[value]]))


def test_sampled_kl_has_no_exact_form() -> None:
    with pytest.raises(ValueError, match="exact can not be taken"):
        sampled_kl(f64([[0.0]]), f64([[0.0]]), "exact")


def test_expectations_of_the_kl_estimators() -> None:
    """Over all tokens: k1 and k3 have the exact KL as their mean; gradients as the docstring says."""
    theta, phi = f64([0.3, -0.2, 0.9, 0.0]).requires_grad_(), f64([0.0, 0.5, 0.1, -0.4])
    logp, reference = torch.log_softmax(theta, 0), torch.log_softmax(phi, 0)
    exact = divergence(logp[None], reference[None])[0]
    p = logp.exp().detach()
    means = {k: (p * sampled_kl(logp, reference, k)).sum() for k in ("k1", "k2", "k3")}
    torch.testing.assert_close(means["k1"], exact)
    torch.testing.assert_close(means["k3"], exact)
    assert not torch.isclose(means["k2"], exact, rtol=1e-3)
    gradient = {k: torch.autograd.grad(v, [theta], retain_graph=True)[0] for k, v in means.items()}
    forward = (reference.exp() * (reference - logp)).sum()
    torch.testing.assert_close(gradient["k1"], torch.zeros(4, dtype=torch.float64), atol=1e-15, rtol=0)
    torch.testing.assert_close(gradient["k2"], torch.autograd.grad(exact, [theta], retain_graph=True)[0])
    torch.testing.assert_close(gradient["k3"], torch.autograd.grad(forward, [theta])[0])


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_weighted_kl_has_the_gradient_of_the_exact_one(estimator: str) -> None:
    theta, phi = f64([0.3, -0.2, 0.9, 0.0]).requires_grad_(), f64([0.0, 0.5, 0.1, -0.4])
    logp, reference = torch.log_softmax(theta, 0), torch.log_softmax(phi, 0)
    loss = kl_penalty(logp, logp.detach(), reference, Objective(kl_estimator=estimator))
    (found,) = torch.autograd.grad((logp.exp().detach() * loss).sum(), [theta], retain_graph=True)
    (expected,) = torch.autograd.grad(divergence(logp[None], reference[None])[0], [theta])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("chunk", [0, 3])
def test_exact_kl_of_the_policy_is_that_of_the_whole_distributions(chunk: int) -> None:
    policy, reference = small_policy(0, chunk_tokens=chunk), small_policy(1)
    batch = random_batch()
    found = policy.forward(batch, reference=reference)
    ids = policy._pad_right([p + r for p, r in zip(batch.prompt_ids, batch.response_ids)])
    logp, other = (torch.log_softmax(m.model(input_ids=ids).logits, -1) for m in (policy, reference))
    kl = (logp.exp() * (logp - other)).sum(-1)
    for i, (prompt, response) in enumerate(zip(batch.prompt_ids, batch.response_ids)):
        span = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
        torch.testing.assert_close(found.kl_MT[i, : len(response)], kl[i, span])
    ours = torch.autograd.grad((found.kl_MT * found.mask_MT).sum(), list(policy.model.parameters()))
    wanted = sum(
        kl[i, len(p) - 1 : len(p) + len(r) - 1].sum()
        for i, (p, r) in enumerate(zip(batch.prompt_ids, batch.response_ids))
    )
    for a, b in zip(ours, torch.autograd.grad(wanted, list(policy.model.parameters()))):
        torch.testing.assert_close(a, b)
    assert all(p.grad is None for p in reference.model.parameters())


def test_reinforce_over_tokens_and_over_responses_by_hand() -> None:
    """Rewards 1, 0, 1 with 1, 3, 2 tokens and an unscorable one: mean 1/2 over tokens, 2/3 over responses."""
    batch = replace(
        random_batch(groups=4, group=1), response_ids=[[1], [5, 5, 1], [7, 1], [4, 4]],
        outcome_B=f64([1, 0, 1, math.nan]), reward_B=f64([1, 0, 1, math.nan]),
        scorable_B=torch.tensor([True, True, True, False]),
    )  # fmt: skip
    over_tokens = Reinforce().build(SETUP).advantages(batch, {})
    torch.testing.assert_close(over_tokens.advantage_BT[:, 0], f64([1, -1, 1, 0]), atol=1e-7, rtol=0)
    over_responses = Reinforce(over="responses").build(SETUP).advantages(batch, {})
    # variance 2/9: (1 − 2/3) / √(2/9) = √½, (0 − 2/3) / √(2/9) = −√2
    expected = f64([math.sqrt(0.5), -math.sqrt(2), math.sqrt(0.5), 0])
    torch.testing.assert_close(over_responses.advantage_BT[:, 0], expected, atol=1e-7, rtol=0)
    # The value of each is the mean outcome of the others: it does not depend on its own reward.
    assert over_tokens.value_BT[:, 0].tolist() == pytest.approx([0.5, 1.0, 0.5, 2 / 3])
    assert over_tokens.advantage_BT[1].tolist() == pytest.approx([-1, -1, -1], abs=1e-7)


def test_reinforce_with_a_group_baseline_by_hand() -> None:
    batch = replace(
        random_batch(groups=2, group=2), response_ids=[[1], [1], [1], [1]],
        outcome_B=f64([1, 0, 1, 1]), reward_B=f64([1, 0, 1, 1]),
    )  # fmt: skip
    found = Reinforce(baseline="group").build(SETUP).advantages(batch, {})
    # centred by group: ½, −½, 0, 0; mean 0, variance 1/8
    expected = f64([0.5, -0.5, 0, 0]) / math.sqrt(1 / 8)
    torch.testing.assert_close(found.advantage_BT[:, 0], expected, atol=1e-6, rtol=0)
    assert found.value_BT[:, 0].tolist() == [0, 1, 1, 1]
    with pytest.raises(UserError, match=r"--reinforce\.baseline group needs"):
        Reinforce(baseline="group").build(replace(SETUP, rollouts_per_prompt=1))


def test_reinforce_of_equal_rewards_is_zero() -> None:
    batch = replace(random_batch(groups=3, group=1), reward_B=f64([1, 1, 1]), outcome_B=f64([1, 1, 1]))
    assert not Reinforce().build(SETUP).advantages(batch, {}).advantage_BT.any()


def test_dr_grpo_is_rloo_times_one_minus_one_over_g() -> None:
    batch = random_batch(groups=5, group=4)
    dr, rloo = (algo.build(SETUP).advantages(batch, {}).advantage_BT for algo in (DrGrpo(), Rloo()))
    torch.testing.assert_close(dr, 0.75 * rloo)
    assert dr.any()


def test_truncated_responses_leave_the_loss_and_stay_in_their_group() -> None:
    policy = policy32()
    batch = rollouts(policy)
    update = PolicyUpdate(policy, Grpo().build(SETUP), resolved(algo=Grpo(), mask_truncated=True))
    found = update.gradient(batch)
    trained = ~batch.truncated_B
    assert found.metrics["tokens/trained"] == int(batch.length_B[trained].sum()) < int(batch.length_B.sum())
    torch.testing.assert_close(found.estimate.advantage_BT[:, 0], expected_advantages(batch, True), rtol=0, atol=1e-12)
