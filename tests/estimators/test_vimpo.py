"""VIMPO against the numbers of its sheet (papers/vimpo.md §13), by enumeration, and cut in every way."""

from __future__ import annotations

import dataclasses
import itertools
import threading

import pytest
import torch

from tests.helpers import random_batch, small_policy, together
from vantage.advantages import whiten
from vantage.batch import Batch
from vantage.config import TrainConfig, resolve
from vantage.distributed.world import World
from vantage.errors import UserError
from vantage.estimators.base import Setup
from vantage.estimators.vimpo import Vimpo, VimpoEstimator, terminal_loss
from vantage.models.reference import make_reference
from vantage.objectives import Objective, clipped_surrogate, sampled_kl, weighted_sum
from vantage.policy import Forward, divergence, divergence_
from vantage.update import PolicyUpdate

F64 = torch.float64
LOGP = [[-0.5, -1.0, -0.25], [-1.2, -0.3, 0.0], [-0.7, -0.9, -2.0], [-0.1, 0.0, 0.0]]
LREF = [[-0.6, -0.8, -0.75], [-1.0, -0.4, 0.0], [-0.7, -1.4, -1.5], [-0.3, 0.0, 0.0]]
KL = [[0.02, 0.05, 0.01], [0.03, 0.02, 0.0], [0.0, 0.10, 0.20], [0.04, 0.0, 0.0]]
LENGTHS = [3, 2, 3, 1]
REWARD = [1.0, 0.0, 1.0, 0.0]


def t(values):
    return torch.tensor(values, dtype=F64)


def batch_of(rewards, groups, lengths=LENGTHS) -> Batch:
    reward_B = t(rewards)
    return Batch(
        step=1,
        prompt_ids=[[5]] * len(lengths),
        response_ids=[[6] * n for n in lengths],
        group_B=torch.tensor(groups),
        outcome_B=reward_B,
        reward_B=reward_B,
        scorable_B=torch.ones(len(lengths), dtype=torch.bool),
        domains=["default"] * len(lengths),
    )


def forward_of(batch: Batch, logp=LOGP, lref=LREF, kl=KL) -> Forward:
    mask = batch.response_mask_BT
    return Forward(
        logp_MT=torch.where(mask, t(logp), 0.0).requires_grad_(),
        entropy_MT=torch.zeros_like(t(logp)),
        mask_MT=mask,
        hidden={},
        prompt_length_M=torch.ones(batch.size, dtype=torch.long),
        length_M=batch.length_B,
        response_ids=batch.response_ids,
        kl_MT=None if kl is None else t(kl),
        reference_logp_MT=t(lref),
    )


def estimator(world=None, **options) -> VimpoEstimator:
    return VimpoEstimator(Vimpo(**options), Setup(2, 8, 2, (0.0, 1.0), max_new_tokens=64, world=world or World()))


def value_loss(batch: Batch, forward: Forward, **options):
    """L_V and its gradient with respect to the sampled log-probs."""
    found = estimator(actor_coef=0.0, **options) if "value_type" not in options else estimator(**options)
    reads = found.read(forward) if found.needs.reads_policy else {}
    estimate = found.advantages(batch, reads)
    loss = found.loss(forward, batch, estimate, torch.full((batch.size,), 1 / batch.size, dtype=F64))
    (gradient,) = torch.autograd.grad(loss, [forward.logp_MT])
    return float(loss.detach()), gradient


ROWS = {
    0.1: (0.125175625, [-0.0117, 0.012125, -0.01325, 0.0129]),
    5e-4: (0.124999382515625, [-6.248e-5, 6.2490625e-5, -6.251875e-5, 6.251e-5]),
}


@pytest.mark.parametrize("beta", ROWS)
def test_tc1_value_loss_and_its_gradient(beta):
    batch = batch_of(REWARD, [0, 0, 1, 1])
    loss, gradient = value_loss(batch, forward_of(batch), beta=beta)
    expected, rows = ROWS[beta]
    assert loss == pytest.approx(expected, abs=1e-12)
    assert torch.allclose(gradient, t(rows)[:, None] * batch.response_mask_BT, atol=1e-12)


VARIANTS = {
    "one group": ([1, 0, 1, 1], [0, 0, 0, 0], {}, 0.090113125, None),
    "huber 0.5": (REWARD, [0, 0, 1, 1], {"huber": 0.5}, 0.125031125, None),
    "huber 0.4": (REWARD, [0, 0, 1, 1], {"huber": 0.4}, 0.1199, None),
    "group flipped": ([0, 1, 1, 0], [0, 0, 1, 1], {}, 0.136925625, [0.0133, -0.012875, -0.01325, 0.0129]),
    "equal rewards": ([1, 1, 1, 0], [0, 0, 1, 1], {}, 0.068550625, [0.0008, -0.000375, -0.01325, 0.0129]),
    "soft": (REWARD, [0, 0, 1, 1], {"value_type": "soft"}, 0.1214615625, None),
}


@pytest.mark.parametrize("case", VARIANTS)
def test_tc1_variants(case):
    rewards, groups, options, expected, rows = VARIANTS[case]
    batch = batch_of([float(r) for r in rewards], groups)
    loss, gradient = value_loss(batch, forward_of(batch), beta=0.1, **options)
    assert loss == pytest.approx(expected, abs=1e-12)
    if rows:
        assert torch.allclose(gradient, t(rows)[:, None] * batch.response_mask_BT, atol=1e-12)


def test_tc1_at_the_reference_the_gradient_is_that_of_centred_rewards_and_the_actor_is_silent():
    batch = batch_of(REWARD, [0, 0, 1, 1])
    forward = forward_of(batch, logp=LREF, kl=[[0.0] * 3] * 4)
    loss, gradient = value_loss(batch, forward, beta=0.1)
    assert loss == 0.125
    rows = [-0.0125, 0.0125, -0.0125, 0.0125]
    assert torch.allclose(gradient, t(rows)[:, None] * batch.response_mask_BT, atol=1e-15)
    acting = estimator(beta=0.1, actor_coef=1.0)
    assert torch.count_nonzero(acting.advantages(batch, acting.read(forward)).advantage_BT) == 0


def test_leave_one_out_centring_drops_the_rollouts_own_reward():
    batch = batch_of([1.0, 0.0, 1.0, 1.0], [0, 0, 0, 0])
    found = estimator(actor_coef=0.0, baseline="leave_one_out").advantages(batch, {})
    assert found.kept["target"].tolist() == pytest.approx([1 / 3, -1.0, 1 / 3, 1 / 3])
    assert found.value_BT[:, 0].tolist() == pytest.approx([2 / 3, 1.0, 2 / 3, 2 / 3])


def test_an_unscorable_rollout_has_no_target_and_takes_part_in_no_mean():
    batch = batch_of([1.0, 0.0, float("nan"), 0.0], [0, 0, 0, 0])
    batch = dataclasses.replace(batch, scorable_B=torch.tensor([True, True, False, True]))
    _, gradient = value_loss(batch, forward_of(batch), beta=0.1)
    found = estimator(actor_coef=1.0).advantages(batch, estimator(actor_coef=1.0).read(forward_of(batch)))
    assert found.kept["target"].tolist() == pytest.approx([2 / 3, -1 / 3, 0.0, -1 / 3])
    assert gradient[2].abs().max() == 0 < gradient[3].abs().max()
    assert found.advantage_BT[2].abs().max() == 0 < found.advantage_BT[3].abs().max()


# --- TC2: estimators of the KL ----------------------------------------------------------------------------------------

POLICY_LOGITS = t([[2, 1, 0, -1, -2], [0.5, 0, 0.25, -0.5, 1]])
REFERENCE_LOGITS = t([[1, 1.5, 0, -0.5, -2.5], [0, 0, 0, 0, 0]])


def test_tc2_kl_estimators():
    p, r = torch.log_softmax(POLICY_LOGITS, 1), torch.log_softmax(REFERENCE_LOGITS, 1)
    at = torch.tensor([[0], [3]])
    lp, lr = p.gather(1, at)[:, 0], r.gather(1, at)[:, 0]
    exact = divergence(p, r)
    assert exact.tolist() == pytest.approx([0.242187121512, 0.117970223069], abs=1e-11)
    assert divergence_(p.clone(), r.clone()).tolist() == pytest.approx(exact.tolist(), abs=1e-14)
    assert (lp - lr).tolist() == pytest.approx([0.732853648499, -0.872605658161], abs=1e-11)
    k2, k3 = (sampled_kl(lp, lr, k) for k in ("k2", "k3"))
    assert k2.tolist() == pytest.approx([0.268537235059, 0.380720317327], abs=1e-11)
    assert k3.tolist() == pytest.approx([0.213389400025, 0.520532779061], abs=1e-11)
    x = p - r
    means = [
        (p.exp() * (x - k)).sum(1).tolist() for k in (exact[:, None], sampled_kl(p, r, "k3"), sampled_kl(p, r, "k2"))
    ]
    assert means[0] == pytest.approx([0, 0], abs=1e-12)
    assert means[1] == pytest.approx([0, 0], abs=1e-12)
    assert means[2] == pytest.approx([-0.010317060441, -0.000300351777], abs=1e-11)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        ("exact", [2.453332634938e-4, -4.952879406147e-4]),
        ("k2", [2.321582067199e-4, -6.266629877438e-4]),
        ("k3", [2.597321242371e-4, -6.965692186110e-4]),
    ],
)
def test_tc2_token_terms(kl, expected):
    p, r = torch.log_softmax(POLICY_LOGITS, 1), torch.log_softmax(REFERENCE_LOGITS, 1)
    at = torch.tensor([[0], [3]])
    batch = batch_of([1.0, 0.0], [0, 0], [1, 1])
    forward = forward_of(batch, p.gather(1, at).tolist(), r.gather(1, at).tolist(), divergence(p, r)[:, None].tolist())
    reads = estimator(kl=kl, beta=5e-4).read(forward)
    assert (5e-4 * (reads["ratio_MT"] - reads["kl_MT"]))[:, 0].tolist() == pytest.approx(expected, abs=1e-14)


def test_tc2b_a_token_without_probability_adds_nothing():
    p, q = (
        torch.tensor([[0.4, 0.35, 0.25, 0.0]], dtype=F64).log(),
        torch.tensor([[0.5, 0.45, 0.05, 0.0]], dtype=F64).log(),
    )
    assert divergence(p, q).item() == pytest.approx(0.225142007685, abs=1e-11)
    assert divergence_(p, q).item() == pytest.approx(0.225142007685, abs=1e-11)


# --- TC3: advantages --------------------------------------------------------------------------------------------------

RAW = {
    1.0: [0.032, 0.024, 0.049, -0.015, 0.008, -0.03, -0.03, -0.07, 0.016],
    0.95: [0.0284725, 0.02155, 0.049, -0.0154, 0.008, -0.025175, -0.0265, -0.07, 0.016],
    0.0: [0.008, -0.025, 0.049, -0.023, 0.008, 0.0, 0.04, -0.07, 0.016],
}
WHITE = [
    0.956756611790, 0.730156361629, 1.438282143382, -0.374519857905, 0.276955861308,
    -0.799395326956, -0.799395326956, -1.932396577760, 0.503556111468,
]  # fmt: skip
BESSEL_FIRST, OWN_HALF_FIRST = 0.902039186252, 0.569641003299


def acting(batch, forward, **options):
    found = estimator(beta=0.1, actor_coef=1.0, **options)
    return found.advantages(batch, found.read(forward)).advantage_BT


@pytest.mark.parametrize("decay", RAW)
def test_tc3_raw_advantages(decay):
    batch = batch_of(REWARD, [0, 0, 1, 1])
    found = acting(batch, forward_of(batch), gae_lambda=decay, whiten=False)
    assert found[batch.response_mask_BT].tolist() == pytest.approx(RAW[decay], abs=1e-14)


def test_tc3_whitened_with_population_variance_and_eps_inside_the_root():
    batch = batch_of(REWARD, [0, 0, 1, 1])
    found = acting(batch, forward_of(batch))
    assert found[batch.response_mask_BT].tolist() == pytest.approx(WHITE, abs=1e-11)
    assert abs(float(found[0, 0]) - BESSEL_FIRST) > 0.05
    assert torch.count_nonzero(found[~batch.response_mask_BT]) == 0


def test_tc3_two_processes_whiten_together():
    batch = batch_of(REWARD, [0, 0, 1, 1])

    def half(world):
        rows = [0, 1] if world.rank == 0 else [2, 3]
        part = batch.select(rows)
        logp, lref, kl = ([values[i] for i in rows] for values in (LOGP, LREF, KL))
        return acting(part, forward_of(part, logp, lref, kl), world=world)[part.response_mask_BT].tolist()

    first, second = together(2, half)
    assert [*first, *second] == pytest.approx(WHITE, abs=1e-11)
    assert abs(first[0] - OWN_HALF_FIRST) > 0.3


def test_tc3_the_actor_loss_is_zero_on_policy_and_its_gradient_is_not():
    batch = batch_of(REWARD, [0, 0, 1, 1])
    forward, found = forward_of(batch), estimator(beta=0.1, actor_coef=0.05)
    estimate = found.advantages(batch, found.read(forward))
    tokens = clipped_surrogate(forward.logp_MT, forward.logp_MT.detach(), estimate.advantage_BT, Objective())
    actor = weighted_sum(tokens.loss_MT, batch.response_mask_BT, torch.full((4,), 1 / 9, dtype=F64))
    own = found.loss(forward, batch, estimate, torch.full((4,), 1 / 4, dtype=F64))
    assert float(actor.detach()) == pytest.approx(0, abs=1e-16)
    assert float((actor + own).detach()) == pytest.approx(0.125175625, abs=1e-12)
    (gradient,) = torch.autograd.grad(actor + own, [forward.logp_MT])
    assert gradient[0].tolist() == pytest.approx([-0.017015314510, -0.015756424231, -0.019690456352], abs=1e-11)


def test_tc4_dual_clip():
    logp, old = t([[-1.0, -0.5, -2.0, -0.3]]).requires_grad_(), t([[-1.3, -0.5, -1.6, -3.0]])
    objective = Objective(clip_low=0.2, clip_high=0.28, dual_clip=10.0)
    loss = clipped_surrogate(logp, old, t([[1.0, -0.5, -1.5, -1.0]]), objective).loss_MT
    assert loss[0].tolist() == pytest.approx([-1.28, 0.5, 1.2, 10.0])
    (gradient,) = torch.autograd.grad(loss.mean(), [logp])
    assert loss.mean().item() == pytest.approx(2.605)
    assert gradient[0].tolist() == pytest.approx([0, 0.125, 0, 0])


def test_tc6_the_floor_of_the_whitening():
    for scale, expected in ((1e-6, 0.00999875023433), (1e-5, 0.0987729596650), (1e-4, 0.534522483825), (0.0, 0.0)):
        found = whiten(scale * t([1, -1, 2, -2]), torch.ones(4), World())
        assert found.tolist() == pytest.approx([expected, -expected, 2 * expected, -2 * expected], abs=1e-12)


# --- TC7: the oracle's fixed point ------------------------------------------------------------------------------------


def test_tc7_the_optimal_policy_has_residuals_of_zero():
    beta, reward = 0.5, {(0, 0): 1.0, (0, 1): 0.0, (1, 0): 0.0, (1, 1): 1.0}
    reference = {(): t([0.6, 0.4]), (0,): t([0.7, 0.3]), (1,): t([0.2, 0.8])}
    policy, value = {}, {}
    for state in ((0,), (1,), ()):
        action = t([reward[(*state, a)] for a in (0, 1)]) if state else t([value[(0,)], value[(1,)]])
        policy[state] = torch.softmax(reference[state].log() + action / beta, 0)
        value[state] = float((policy[state] * action).sum())
    assert value[()] == pytest.approx(0.954252003953, abs=1e-11)
    assert policy[()].tolist() == pytest.approx([0.589349257366, 0.410650742634], abs=1e-11)
    kl = {s: float(divergence(policy[s].log()[None], reference[s].log()[None])) for s in policy}
    assert kl[()] == pytest.approx(2.35652149997e-4, abs=1e-13)
    for leaf, earned in reward.items():
        path = [((), leaf[0]), ((leaf[0],), leaf[1])]
        batch = batch_of([earned], [0], [2])
        logp, lref = ([[float(table[s][a].log()) for s, a in path]] for table in (policy, reference))
        forward = forward_of(batch, logp, lref, [[kl[s] for s, _ in path]])
        reads = estimator(beta=beta).read(forward)
        delta = beta * (reads["ratio_MT"] - reads["kl_MT"])[0]
        assert float(delta.sum()) == pytest.approx(earned - value[()], abs=1e-12)
        assert float(delta[0]) == pytest.approx(value[(leaf[0],)] - value[()], abs=1e-12)
        assert float(terminal_loss(delta.sum() - (earned - value[()]))) < 1e-24


# --- TC8, TC9: to the logits, and aggregation -------------------------------------------------------------------------

LOGITS8 = [[[1, 0, -1], [0, 0.5, 0]], [[1, 0, -1], [0, 0, 0]]]
REFERENCE8 = [[[0.5, 0, -0.5], [0, 0, 0]], [[0.5, 0, -0.5], [0, 0, 0]]]


def forward8(logits, detach=True):
    batch = batch_of([1.0, 0.0], [0, 0], [2, 1])
    p, r = torch.log_softmax(logits, -1), torch.log_softmax(t(REFERENCE8), -1)
    at = torch.tensor([[0, 1], [2, 0]])[..., None]
    mask = batch.response_mask_BT
    kl = (p.exp() * (p - r)).sum(-1)
    inside = torch.zeros_like(kl)
    forward = Forward(
        logp_MT=torch.where(mask, p.gather(2, at)[..., 0], inside), entropy_MT=inside, mask_MT=mask, hidden={},
        prompt_length_M=torch.ones(2, dtype=torch.long), length_M=batch.length_B, response_ids=batch.response_ids,
        kl_MT=torch.where(mask, kl.detach() if detach else kl, inside),
        reference_logp_MT=torch.where(mask, r.gather(2, at)[..., 0], inside),
    )  # fmt: skip
    return batch, forward


def test_tc8_end_to_end_to_the_logits():
    logits = t(LOGITS8).requires_grad_()
    batch, forward = forward8(logits)
    found = estimator(beta=0.2, actor_coef=0.05)
    estimate = found.advantages(batch, found.read(forward))
    own = found.loss(forward, batch, estimate, torch.full((2,), 0.5, dtype=F64))
    assert float(own.detach()) == pytest.approx(0.069866255086, abs=1e-11)
    (alone,) = torch.autograd.grad(own, [logits], retain_graph=True)
    expected = [
        [[-0.013480991569, 0.009855394535, 0.003625597034], [0.011036943756, -0.022073887511, 0.011036943756]],
        [[-0.022783103184, -0.008381435267, 0.031164538451], [0, 0, 0]],
    ]
    assert torch.allclose(alone, t(expected), atol=1e-11)
    tokens = clipped_surrogate(forward.logp_MT, forward.logp_MT.detach(), estimate.advantage_BT, Objective())
    total = own + weighted_sum(tokens.loss_MT, batch.response_mask_BT, torch.full((2,), 1 / 3, dtype=F64))
    (gradient,) = torch.autograd.grad(total, [logits])
    expected = [
        [[-0.018441250087, 0.013481634077, 0.004959616010], [0.013357154651, -0.026714309301, 0.013357154651]],
        [[-0.038272043013, -0.014079497796, 0.052351540809], [0, 0, 0]],
    ]
    assert torch.allclose(gradient, t(expected), atol=1e-11)
    not_detached = t([-0.012751248411, 0.010647171446, 0.002104076965])
    assert (gradient[0, 0] - not_detached).abs().max() > 1e-3


def test_tc8_a_kl_with_gradient_is_detached_by_the_loss():
    logits = t(LOGITS8).requires_grad_()
    batch, forward = forward8(logits, detach=False)
    found = estimator(beta=0.2, actor_coef=0.0)
    own = found.loss(forward, batch, found.advantages(batch, {}), torch.full((2,), 0.5, dtype=F64))
    (gradient,) = torch.autograd.grad(own, [logits])
    assert gradient[0, 0].tolist() == pytest.approx([-0.013480991569, 0.009855394535, 0.003625597034], abs=1e-11)


def test_tc9_the_actor_branch_is_a_mean_over_all_tokens():
    config = resolve(TrainConfig(algo=Vimpo()), max_new_tokens=8, stop=(), reward_range=(0.0, 1.0))
    objective = Objective.of(config)
    assert (objective.aggregation, objective.clip_low, objective.clip_high, objective.dual_clip) == (
        "token-mean", 0.2, 0.28, 10.0,
    )  # fmt: skip


# --- TC10: expected gradients by enumeration --------------------------------------------------------------------------

V, T = 3, 3
STATES = [s for n in range(T) for s in itertools.product(range(V), repeat=n)]
LEAVES = list(itertools.product(range(V), repeat=T))


class Tables:
    """Softmax tables for every prefix, and everything about every leaf."""

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.theta = torch.randn(len(STATES), V, generator=draw, dtype=F64).requires_grad_()
        self.reference = torch.log_softmax(torch.randn(len(STATES), V, generator=draw, dtype=F64), 1)
        self.reward = torch.rand(len(LEAVES), generator=draw, dtype=F64)
        index = {s: i for i, s in enumerate(STATES)}
        self.state = torch.tensor([[index[leaf[:k]] for k in range(T)] for leaf in LEAVES])
        self.action = torch.tensor(LEAVES)

    def forward(self, batch: Batch) -> Forward:
        logp = torch.log_softmax(self.theta, 1)
        mask = batch.response_mask_BT
        rows = torch.tensor([r[0] for r in batch.response_ids])
        at = (self.state[rows], self.action[rows])
        return Forward(
            logp_MT=logp[at], entropy_MT=torch.zeros(mask.shape), mask_MT=mask, hidden={},
            prompt_length_M=torch.ones(batch.size, dtype=torch.long), length_M=batch.length_B,
            response_ids=batch.response_ids, kl_MT=divergence(logp, self.reference)[at[0]],
            reference_logp_MT=self.reference[at],
        )  # fmt: skip

    def probability(self):
        return torch.log_softmax(self.theta, 1)[self.state, self.action].sum(1).exp()

    def gradient(self, value):
        return torch.autograd.grad(value, [self.theta], retain_graph=True)[0]

    def local_kl(self, forward_kl: bool = False):
        """∇ of the expected sum of KLs with the distribution of states held fixed."""
        logp = torch.log_softmax(self.theta, 1)
        each = divergence(self.reference, logp) if forward_kl else divergence(logp, self.reference)
        return self.gradient((self.probability().detach() * each[self.state].sum(1)).sum())

    def batch(self, rows, rewards=None) -> Batch:
        made = batch_of(self.reward[rows].tolist() if rewards is None else rewards, [0] * len(rows), [T] * len(rows))
        return dataclasses.replace(made, response_ids=[[row] * T for row in rows])


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("beta", [5e-4, 0.3])
def test_tc10a_the_value_loss_is_reinforce_with_a_kl_penalty_in_expectation(seed, beta):
    world, p = Tables(seed), Tables(seed).probability().detach()
    value = float((p * world.reward).sum())
    for kl, forward_kl in (("exact", False), ("k3", True)):
        found = estimator(beta=beta, kl=kl, actor_coef=0.0)
        batch = world.batch(list(range(len(LEAVES))))
        forward = world.forward(batch)
        estimate = found.advantages(batch, {})
        estimate = dataclasses.replace(estimate, kept=estimate.kept | {"target": world.reward - value})
        gradient = world.gradient(found.loss(forward, batch, estimate, p))
        expected = beta * (
            beta * world.local_kl(forward_kl) - world.gradient((world.probability() * world.reward).sum())
        )
        assert torch.allclose(gradient, expected, atol=1e-14), kl
    every_gradient = world.gradient(
        (world.probability() * divergence(torch.log_softmax(world.theta, 1), world.reference)[world.state].sum(1)).sum()
    )
    assert (every_gradient - world.local_kl()).abs().max() > 1e-2


def test_tc10b_a_group_mean_with_itself_inside_shrinks_the_reinforce_part():
    world, beta = Tables(0), 0.3
    p = world.probability().detach()
    found, total = estimator(beta=beta, actor_coef=0.0), torch.zeros_like(world.theta)
    for i, j in itertools.product(range(len(LEAVES)), repeat=2):
        batch = world.batch([i, j])
        estimate = found.advantages(batch, {})
        loss = found.loss(world.forward(batch), batch, estimate, torch.full((2,), 0.5, dtype=F64))
        total += p[i] * p[j] * world.gradient(loss)
    reinforce = world.gradient((world.probability() * world.reward).sum())
    assert torch.allclose(total, beta * (beta * world.local_kl() - 0.5 * reinforce), atol=1e-14)


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kl", ["exact", "k3"])
def test_tc10c_the_actor_branch_ascends_the_kl_whatever_lambda(decay, kl):
    world, beta = Tables(1), 0.3
    found = estimator(beta=beta, actor_coef=1.0, gae_lambda=decay, whiten=False, kl=kl)
    batch = world.batch(list(range(len(LEAVES))))
    forward = world.forward(batch)
    advantage = found.advantages(batch, found.read(forward)).advantage_BT
    gradient = world.gradient((world.probability().detach()[:, None] * advantage * forward.logp_MT).sum())
    assert torch.allclose(gradient, beta * world.local_kl(kl == "k3"), atol=1e-14)


def test_tc10e_with_k1_only_reinforce_would_be_left():
    with pytest.raises(UserError, match=r"--vimpo\.kl k1"):
        Vimpo(kl="k1")
    assert Vimpo(kl="k1", value_type="soft").kl == "k1"


# --- cut in every way -------------------------------------------------------------------------------------------------

KINDS = {
    "default": {},
    "value only": {"actor_coef": 0.0},
    "lambda": {"gae_lambda": 0.8, "actor_coef": 0.3, "beta": 0.1},
    "k3": {"kl": "k3", "beta": 0.1, "actor_coef": 0.1},
    "soft": {"value_type": "soft", "beta": 0.1},
    "bonus": {"actor_coef": 0.0, "kl_bonus": 0.1, "beta": 0.1},
    "leave one out": {"baseline": "leave_one_out", "beta": 0.1},
}


ONE_AT_A_TIME = threading.Lock()


def drifted(seed=0):
    """A policy that has moved away from its reference."""
    with ONE_AT_A_TIME:  # the weights come from the global generator
        policy = small_policy(seed)
    reference = make_reference(policy, None)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw, dtype=F64))
    return policy, reference


def update_of(options, world=None, **changes):
    policy, reference = drifted()
    algo = Vimpo(**options)
    config = resolve(
        TrainConfig(algo=algo, rollouts_per_prompt=2, **changes), max_new_tokens=16, stop=(), reward_range=(0.0, 1.0)
    )
    made = algo.build(Setup(3, 32, 2, (0.0, 1.0), max_new_tokens=16, world=world or World()))
    return PolicyUpdate(policy, made, config, reference, world)


def gradient_of(update):
    return torch.cat([p.grad.flatten() for p in update.policy.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_and_the_prepass_change_neither_loss_nor_gradient(kind):
    whole = update_of(KINDS[kind])
    expected = whole.gradient(random_batch()).metrics
    assert gradient_of(whole).abs().max() > 1e-6
    for changes in ({"tokens_per_microbatch": 1}, {"tokens_per_microbatch": 45}, {"forward": "prepass"}):
        cut = update_of(KINDS[kind], **changes)
        found = cut.gradient(random_batch()).metrics
        assert torch.allclose(gradient_of(cut), gradient_of(whole), atol=1e-12, rtol=1e-9), changes
        for name in ("loss/policy", "loss/value", "policy/kl_ref"):
            assert found[name] == pytest.approx(expected[name], abs=1e-10), (changes, name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, {"minibatches": 2, "epochs": 2}, {"minibatches": 5}], ids=["once", "2x2", "5"])
def test_two_processes_update_as_one(kind, changes):
    alone = update_of(KINDS[kind], **changes)
    expected = alone.run(random_batch()).metrics

    def share(world):
        batch = random_batch()
        rows = [i for i, g in enumerate(batch.group_B.tolist()) if g % 2 == world.rank]
        update = update_of(KINDS[kind], world, **changes)
        return update.run(batch.select(rows)).metrics, [p.detach() for p in update.policy.model.parameters()]

    for metrics, weights in together(2, share):
        for ours, theirs in zip(weights, alone.policy.model.parameters()):
            assert torch.allclose(ours, theirs, atol=1e-9)
        assert metrics["loss/value"] == pytest.approx(expected["loss/value"], abs=1e-10)
        assert metrics["policy/kl_ref"] == pytest.approx(expected["policy/kl_ref"], abs=1e-10)


def count_forwards(update, batch):
    calls = {"policy": 0, "reference": 0}
    for name, model in (("policy", update.policy), ("reference", update.reference)):
        plain = model.head.run

        def run(ids, name=name, plain=plain):
            calls[name] += 1
            return plain(ids)

        object.__setattr__(model.head, "run", run)
    update.run(batch)
    return calls


@pytest.mark.parametrize(
    ("options", "changes", "expected"),
    [
        ({}, {}, {"policy": 2, "reference": 1}),
        ({"actor_coef": 0.0}, {}, {"policy": 1, "reference": 1}),
        ({"kl": "k3"}, {}, {"policy": 2, "reference": 1}),
        ({}, {"epochs": 3}, {"policy": 6, "reference": 1}),
    ],
    ids=["default", "value only", "k3", "three epochs"],
)
def test_the_reference_runs_once_a_batch_and_the_value_loss_alone_has_no_prepass(options, changes, expected):
    assert count_forwards(update_of(options, **changes), random_batch()) == expected


def test_advantages_follow_the_current_policy_in_the_second_epoch():
    seen = []
    update = update_of({"beta": 0.1, "actor_coef": 1.0}, epochs=2, learning_rate=1e-2)
    plain = update.estimator.advantages

    def watched(batch, reads):
        seen.append(plain(batch, reads))
        return seen[-1]

    update.estimator.advantages = watched
    update.run(random_batch())
    assert len(seen) == 2
    assert (seen[0].advantage_BT - seen[1].advantage_BT).abs().max() > 1e-3


# --- what makes no sense ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"beta": 0.0}, "--vimpo.beta"),
        ({"gamma": 0.99}, "--vimpo.gamma"),
        ({"gae_lambda": 1.5}, "--vimpo.gae-lambda"),
        ({"actor_coef": -1.0}, "--vimpo.actor-coef"),
        ({"value_type": "soft", "actor_coef": 0.1}, "--vimpo.actor-coef"),
        ({"kl_bonus": 0.1, "kl": "k3"}, "--vimpo.kl-bonus"),
        ({"huber": -1.0}, "--vimpo.huber"),
        ({"whiten_eps": 0.0}, "--vimpo.whiten-eps"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, flag):
    with pytest.raises(UserError, match=flag.replace(".", r"\.")):
        Vimpo(**options)


def test_a_second_kl_is_refused_and_a_cut_distribution_is_warned_about():
    with pytest.raises(UserError, match=r"--kl-coef is 0\.1"):
        TrainConfig(algo=Vimpo(), kl_coef=0.1)
    assert [w.split()[0] for w in Vimpo().warnings(TrainConfig(algo=Vimpo(), top_p=0.9, top_k=5))] == [
        "--top-p",
        "--top-k",
    ]
    assert list(Vimpo().warnings(TrainConfig(algo=Vimpo()))) == []


def test_the_default_actor_coefficient_scales_with_the_response_budget():
    assert estimator().actor_coef == pytest.approx(5e-3 * 64 / 4096)
    assert estimator(actor_coef=0.2).actor_coef == 0.2
    assert estimator(value_type="soft").actor_coef == 0
