"""VinePPO against the numbers of its sheet (papers/genac.md T3, T5), exact values, and enumeration."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import small_policy, together
from tests.montecarlo.test_values import Chain
from tests.odd import odd_length
from tests.test_enumerable import odd_world
from vantage import TrainConfig, Trainer, Vineppo
from vantage.batch import Batch
from vantage.collect import Collected
from vantage.config import resolve
from vantage.distributed.world import World
from vantage.enumerable import EnumerableWorld
from vantage.errors import UserError
from vantage.estimators.base import Services, Setup, State
from vantage.estimators.vineppo import VineppoEstimator, step_advantages
from vantage.preflight import first_step
from vantage.rewards import RewardSet
from vantage.rollout.engine import Rollout, Sampling
from vantage.rollout.transformers_engine import TransformersEngine
from vantage.segment_credit import over_tokens, segment_numbers
from vantage.segments import Segments
from vantage.tasks.base import Problem, Task
from vantage.update import PolicyUpdate
from vantage.workload import Workload

F64 = torch.float64
NAN = math.nan
SINGLE = {"kind": "fixed", "tokens": 1, "max_segment_tokens": None, "max_segments": None, "cap": None}
"""Every token a step: the splitting that no token has a hand in."""


def tokens_of(values: list[float], starts: tuple[int, ...], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    number_BT = segment_numbers([Segments(starts, length)])
    return over_tokens([values], number_BT), number_BT


# ---- the sheet's numbers


def test_nine_continuations_of_four_states_give_the_sheets_advantages():
    value_BT, number_BT = tokens_of([4 / 9, 6 / 9, 3 / 9, 1.0], (0, 2, 3, 7), 9)
    found = step_advantages(value_BT, number_BT, torch.tensor([1.0], dtype=F64))[0].tolist()
    assert found == pytest.approx([2 / 9] * 2 + [-3 / 9] + [6 / 9] * 4 + [0.0] * 2, abs=1e-12)
    # one of each step: they add up to r − V(s_0)
    assert sum(found[t] for t in (0, 2, 3, 7)) == pytest.approx(0.5555555556, abs=1e-9)


@pytest.mark.parametrize(("reward", "third"), [(1.0, 2 / 3), (0.0, -1 / 3)])
def test_the_step_at_the_cap_answers_for_all_that_follows(reward, third):
    value_BT, number_BT = tokens_of([4 / 9, 6 / 9, 3 / 9, NAN, NAN, NAN], (0, 1, 2, 3, 4, 5), 6)
    found = step_advantages(value_BT, number_BT, torch.tensor([reward], dtype=F64))[0].tolist()
    assert found == pytest.approx([2 / 9, -1 / 3, third, 0, 0, 0], abs=1e-12)


@pytest.mark.parametrize(("reward", "last"), [(1.0, 0.2), (0.0, -0.8)])
def test_one_step_advantages_are_those_of_gae_at_lambda_zero(reward, last):
    value_BT, number_BT = tokens_of([0.4, 0.6, 0.3, 0.8], (0, 3, 6, 9), 10)
    found = step_advantages(value_BT, number_BT, torch.tensor([reward], dtype=F64))[0].tolist()
    assert found == pytest.approx([0.2] * 3 + [-0.3] * 3 + [0.5] * 3 + [last], abs=1e-12)


def test_defaults_are_the_papers():
    algo = Vineppo()
    assert (algo.continuations, algo.cap, algo.whiten) == (9, 20, True)
    assert (algo.rollouts_min, algo.rollouts_default) == (1, 1)
    assert (algo.defaults.clip_low, algo.defaults.clip_high, algo.defaults.dual_clip) == (0.2, 0.2, None)


# ---- a step without a trainer


class Steps(Task):
    """Responses of the enumerable world; steps are single tokens unless the options say otherwise."""

    name, version = "steps", "1"
    min_segment_tokens = 1
    step_separator = "b"


class Counting:
    """An engine that remembers what it was asked for and what it gave."""

    def __init__(self, engine) -> None:
        self.engine, self.end_ids, self.calls, self.given = engine, engine.end_ids, [], []

    def generate(self, requests, sampling):
        self.calls.append((list(requests), sampling))
        self.given.append(self.engine.generate(requests, sampling))
        return self.given[-1]


class Stage:
    """The enumerable world of the sheet's T6 with an estimator on it; texts of tokens are a, b and nothing."""

    def __init__(self, rewards=None, world=None, engine=None, limit=3, **options) -> None:
        self.chain = Chain()
        self.engine = Counting(engine or self.chain.engine)
        config = TrainConfig(
            algo=Vineppo(**(SINGLE | options)),
            seed=5,
            max_new_tokens=limit,
            aggregation="seq-mean-token-sum",
            max_grad_norm=0,
        )
        self.config = resolve(config, max_new_tokens=limit, stop=(), reward_range=(0.0, 1.0))
        self.limit, self.world = limit, world or World()
        self.work = Workload(Steps(), RewardSet([rewards] if rewards else [odd]), (0.0, 1.0))

    def estimator(self, **changes) -> VineppoEstimator:
        config = dataclasses.replace(self.config, **changes)
        services = Services(self.chain.policy, self.engine, Sampling(self.limit), self.work, config)
        setup = Setup(
            num_layers=1,
            hidden_size=4,
            rollouts_per_prompt=1,
            reward_range=(0.0, 1.0),
            world=self.world,
            services=services,
        )
        return config.algo.build(setup)

    def collected(self, responses, prompts=None, groups=None, outcome=None, step=1) -> Collected:
        """Rollouts as given; all of prompt 0 and each a group of its own unless said otherwise."""
        count = len(responses)
        prompts = prompts or [0] * count
        problems = {p: self.chain.problems[p] for p in set(prompts)}
        outcome = outcome if outcome is not None else [odd([self.text(y)])[0] for y in responses]
        outcome_B = torch.tensor(outcome, dtype=F64)
        batch = Batch(
            step=step, prompt_ids=[[3 + p] for p in prompts], response_ids=[list(y) for y in responses],
            group_B=torch.tensor(groups or list(range(count))), outcome_B=outcome_B, reward_B=outcome_B,
            scorable_B=outcome_B.isfinite(), domains=["default"] * count,
        )  # fmt: skip
        rollouts = [Rollout(list(y), [-1.0] * len(y), "stop") for y in responses]
        return Collected(batch, [problems[p] for p in prompts], [self.text(y) for y in responses], rollouts, [{}] * count,
                         {}, [], count, count)  # fmt: skip

    def text(self, ids) -> str:
        return self.chain.policy.tokenizer.decode(ids)

    def asked(self) -> list[tuple[int, tuple[int, ...]]]:
        """Prompt and prefix of every request."""
        return [(r.prompt_ids[0] - 3, r.prefix_ids) for requests, _ in self.engine.calls for r in requests]


def odd(completions, **_):
    return [float(c.count("a") % 2 == 1) for c in completions]


A, B, END = 0, 1, 2


def test_values_are_within_sampling_error_of_the_exact_ones():
    count = 600
    stage = Stage(continuations=count)
    responses, prompts = [(A, B, A), (B, A, END), (A, A, B), (END,)], [0, 0, 1, 1]
    found = stage.estimator().query(stage.collected(responses, prompts)).reads
    checked = 0
    for row, (prompt, response) in enumerate(zip(prompts, responses)):
        for t in range(len(response)):
            exact = stage.chain.exact(prompt, response[:t])
            error = math.sqrt(exact * (1 - exact) / count)
            assert abs(float(found["value_MT"][row, t]) - exact) <= 4.5 * error + 1e-12
            checked += 0 < exact < 1
    assert checked >= 7


def test_values_do_not_depend_on_the_rollouts_own_outcome():
    stage = Stage(continuations=5)
    responses = [(A, B, A), (B, A, END)]
    reads = [
        stage.estimator().query(stage.collected(responses, outcome=outcome)).reads for outcome in ([1, 1], [0, NAN])
    ]
    for name, value in reads[0].items():
        torch.testing.assert_close(value, reads[1][name], rtol=0, atol=0, equal_nan=True)


def test_equal_states_are_asked_for_once_in_one_pass_and_their_tokens_are_counted():
    stage = Stage(continuations=4)
    # Prompt 0 twice with a shared first token, a sibling of another first token; prompt 1 with the same tokens.
    responses, prompts = [(A, B, A), (A, A, END), (B, END), (A, B, END)], [0, 0, 0, 1]
    metrics = stage.estimator().query(stage.collected(responses, prompts, groups=[0, 0, 0, 1])).metrics
    assert len(stage.engine.calls) == 1
    wanted = [(0, ()), (0, (A,)), (0, (A, B)), (0, (A, A)), (0, (B,)), (1, ()), (1, (A,)), (1, (A, B))]
    assert sorted(stage.asked()) == sorted(wanted)
    requests, sampling = stage.engine.calls[0]
    assert all(len(r.keys) == 4 == len(set(r.keys)) and r.max_new_tokens is None for r in requests)
    assert sampling == Sampling(3)
    generated = sum(len(r.response_ids) for group in stage.engine.given[0] for r in group)
    assert metrics["tokens/value_extra"] == generated > 0
    assert metrics["vineppo/states"] == 8
    assert metrics["vineppo/states_per_response"] == metrics["vineppo/segments_per_response"] == 11 / 4
    assert metrics["vineppo/duplicates"] == pytest.approx(3 / 11)
    assert metrics["vineppo/unscorable"] == 0


def test_continuations_use_what_the_prefix_leaves_of_the_budget():
    stage = Stage(continuations=30)
    stage.estimator().query(stage.collected([(A, B, A)]))
    for request, group in zip(stage.engine.calls[0][0], stage.engine.given[0]):
        longest = max(len(r.response_ids) for r in group)
        assert longest == 3 - len(request.prefix_ids)


def test_states_behind_the_cap_are_not_asked_for_and_have_no_value():
    stage = Stage(continuations=2, cap=1)
    reads = stage.estimator().query(stage.collected([(A, B, A)])).reads
    assert sorted(stage.asked()) == [(0, ()), (0, (A,))]
    assert reads["value_MT"].isnan().tolist() == [[False, False, True]]
    assert reads["segment_MT"].tolist() == [[0, 1, 2]]


def test_steps_are_the_tasks_own_unless_options_say_otherwise():
    stage = Stage(kind="separator", continuations=1)  # behind runs of the letter b
    assert stage.estimator().query(stage.collected([(A, B, A), (A, A, END)])).reads["segment_MT"].tolist() == [
        [0, 0, 1],
        [0, 0, 0],
    ]
    stage = Stage(kind="separator", separator="a", continuations=1)
    assert stage.estimator().query(stage.collected([(A, B, A), (B, END)])).reads["segment_MT"].tolist() == [
        [0, 1, 1],
        [0, 0, -1],
    ]
    stage = Stage(kind="separator", min_segment_tokens=3, continuations=1)
    assert stage.estimator().query(stage.collected([(A, B, A)])).reads["segment_MT"].tolist() == [[0, 0, 0]]


def test_draws_depend_on_step_and_state_alone():
    def values(responses, step=1, **changes):
        stage = Stage(continuations=3)
        stage.estimator(**changes).query(stage.collected(responses, step=step))
        return {
            r.prefix_ids: [x.response_ids for x in group]
            for r, group in zip(stage.engine.calls[0][0], stage.engine.given[0])
        }

    whole = values([(A, B, A), (B, A, B)])
    assert values([(B, A, B)])[(B, A)] == whole[(B, A)]
    assert values([(B, B, B), (B, A, B)])[(B,)] == whole[(B,)]
    assert values([(A, B, A), (B, A, B)], step=2) != whole
    assert values([(A, B, A), (B, A, B)], seed=6) != whole


def test_a_state_of_two_processes_is_continued_by_one_and_both_know_it():
    responses, prompts, groups = [(A, B, A), (A, A, END), (B, END)], [0, 0, 1], [0, 1, 2]
    alone = Stage(continuations=3)
    expected = alone.estimator().query(alone.collected(responses, prompts, groups))

    def part(world):
        stage, mine = Stage(continuations=3, world=world), list(world.share(3))
        collected = stage.collected(*([column[i] for i in mine] for column in (responses, prompts, groups)))
        return stage.asked, mine, stage.estimator().query(collected)

    found = together(2, part)
    asked = [state for states, _, _ in found for state in states()]
    assert sorted(asked) == sorted(alone.asked())
    for _, mine, queried in found:
        assert queried.metrics == expected.metrics
        for name, value in queried.reads.items():
            width = value.shape[1]
            torch.testing.assert_close(value, expected.reads[name][mine][:, :width], rtol=0, atol=0, equal_nan=True)


def test_a_process_without_rollouts_takes_part():
    def part(world):
        stage = Stage(continuations=2, world=world)
        collected = stage.collected([(A, B, A)]) if world.main else stage.collected([])
        estimator = stage.estimator()
        queried = estimator.query(collected)
        estimator.advantages(dataclasses.replace(collected.batch, queried=queried.reads), {})
        return queried.metrics

    metrics = together(2, part)
    assert metrics[0] == metrics[1]
    assert metrics[0]["vineppo/states"] == 3


# ---- judging


def test_what_rewards_log_about_continuations_reaches_nobody_and_they_know_the_step():
    seen = []

    def logging(completions, completion_ids, trainer_state, log_extra, log_metric, **_):
        seen.append((len(completions), trainer_state.global_step))
        log_extra("length", [len(c) for c in completions])
        log_metric("calls", 1.0)
        return [1.0] * len(completions)

    stage = Stage(rewards=logging, continuations=4)
    collected = stage.collected([(A, B, A), (B, END)], step=3)
    queried = stage.estimator().query(collected)
    assert sum(count for count, _ in seen) == 4 * 4  # four states: one of the prompt, shared
    assert {step for _, step in seen} == {3}
    assert max(count for count, _ in seen) <= 2  # a call judges no more than there are rollouts
    assert set(queried.metrics) == {
        "tokens/value_extra", "vineppo/states", "vineppo/unscorable", "vineppo/segments_per_response",
        "vineppo/states_per_response", "vineppo/duplicates", "vineppo/samples_per_value",
    }  # fmt: skip
    assert collected.extras == [{}, {}]
    assert collected.metrics == {}


def test_reward_functions_that_fail_on_continuations_are_told_of_once():
    def failing(completions, **_):
        raise ValueError("no verdict")

    queried = (stage := Stage(rewards=failing, continuations=2)).estimator().query(stage.collected([(A, B), (B, END)]))
    assert queried.metrics["vineppo/unscorable"] == 1
    assert len(queried.notes) == len(set(queried.notes))
    assert all(note.startswith("continuations: reward function 'failing'") for note in queried.notes)
    assert any("no verdict" in note for note in queried.notes)
    assert queried.reads["value_MT"].isnan().all()


def test_whole_responses_are_judged_with_their_problems_columns():
    seen = []

    def noting(completions, completion_ids, answer, **_):
        seen.extend(zip(completions, map(tuple, completion_ids), answer))
        return [0.0] * len(completions)

    stage = Stage(rewards=noting, continuations=3)
    stage.chain.problems = [Problem("0", {"answer": "x"}), Problem("1", {"answer": "y"})]
    stage.estimator().query(stage.collected([(A, B, A), (B, END)], [0, 1]))
    requests, drawn = stage.engine.calls[0][0], stage.engine.given[0]
    whole = [(*r.prefix_ids, *x.response_ids) for r, group in zip(requests, drawn) for x in group]
    names = ["xy"[r.prompt_ids[0] - 3] for r in requests for _ in r.keys]
    assert seen == [(stage.text(ids), ids, name) for ids, name in zip(whole, names)]


def test_continuations_that_can_not_be_judged_are_left_out_and_a_state_without_any_joins_the_step_before():
    def picky(completions, **_):  # what begins with ab can not be judged
        return [None if c.startswith("ab") else float(c.count("a") % 2) for c in completions]

    stage = Stage(rewards=picky, continuations=6)
    collected = stage.collected([(A, B, A)], outcome=[1.0])
    estimator = stage.estimator(algo=dataclasses.replace(stage.config.algo, whiten=False))
    queried = estimator.query(collected)
    drawn = [
        [(*r.prefix_ids, *x.response_ids) for x in group]
        for r, group in zip(stage.engine.calls[0][0], stage.engine.given[0])
    ]
    judged = [[y.count(A) % 2 for y in group if y[:2] != (A, B)] for group in drawn]
    assert queried.metrics["vineppo/unscorable"] == pytest.approx(1 - sum(map(len, judged)) / 18)
    v0, v1 = (sum(found) / len(found) for found in judged[:2])
    assert queried.reads["value_MT"][0].tolist() == pytest.approx([v0, v1, NAN], nan_ok=True)
    found = estimator.advantages(dataclasses.replace(collected.batch, queried=queried.reads), {})
    assert found.advantage_BT[0].tolist() == pytest.approx([v1 - v0, 1 - v1, 0.0])
    assert found.value_BT[0].tolist() == pytest.approx([v0, v1, NAN], nan_ok=True)


def test_pay_is_shaped_by_the_whole_length_and_values_of_outcomes_are_not():
    stage = Stage(rewards=lambda completions, **_: [1.0] * len(completions), continuations=40)
    estimator = stage.estimator(overlong_buffer=2, overlong_penalty=0.5)  # 1 token: 0, 2 tokens: ¼ off, 3 tokens: ½ off
    reads = estimator.query(stage.collected([(A, B, A)])).reads
    assert reads["value_MT"].tolist() == [[1.0, 1.0, 1.0]]
    lengths = [
        [len(r.prefix_ids) + len(x.response_ids) for x in group]
        for r, group in zip(stage.engine.calls[0][0], stage.engine.given[0])
    ]
    expected = [1 - 0.25 * sum(n - 1 for n in found) / len(found) for found in lengths]
    assert reads["pay_MT"][0].tolist() == pytest.approx(expected)
    assert expected[0] > expected[2] == 0.5


def test_rollouts_that_could_not_be_judged_teach_nothing_and_do_not_count_in_the_whitening():
    stage = Stage(continuations=3)
    collected = stage.collected([(A, B, A), (B, A, B)], outcome=[1.0, NAN])
    estimator = stage.estimator()
    reads = estimator.query(collected).reads
    found = estimator.advantages(dataclasses.replace(collected.batch, queried=reads), {}).advantage_BT
    assert found[1].tolist() == [0.0, 0.0, 0.0]
    assert float(found[0].mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(found[0].var()) == pytest.approx(1.0, abs=1e-5)


# ---- unbiasedness by enumeration: sum over tokens, mean over responses, ratio 1, no whitening


class Valued(EnumerableWorld):
    """Batches come with values of their states, as `query` would give them."""

    def valued(self, chain: Chain, size: int, change=lambda value, prompt, prefix, response: value) -> Valued:
        object.__setattr__(self, "chain", chain)
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "change", change)
        return self

    def batch(self, prompt, responses, step=1):
        plain = super().batch(prompt, responses, step)
        cuts = [Segments(tuple(range(0, len(y), self.size)), len(y)) for y in responses]
        number_BT = segment_numbers(cuts)
        rows = [
            [self.change(self.exact(prompt, y[:t]), prompt, y[:t], y) for t in cut.starts]
            for y, cut in zip(responses, cuts)
        ]
        value_BT = over_tokens(rows, number_BT)
        return dataclasses.replace(plain, queried={"segment_MT": number_BT, "value_MT": value_BT, "pay_MT": value_BT})

    def exact(self, prompt, prefix):
        known = self.__dict__.setdefault("known", {})
        if (prompt, prefix) not in known:
            known[prompt, prefix] = self.chain.exact(prompt, prefix)
        return known[prompt, prefix]


def bias(size: int, change=None, **options) -> tuple[float, float]:
    """Largest error of the expected gradient, and the exact one's largest entry."""
    plain = odd_world()
    world = Valued(plain.theta_SV, plain.offset_PV, plain.reward, plain.max_length, plain.end_token)
    world.valued(Chain(), size, *([change] if change else []))
    stage = Stage(whiten=False, **options)
    update = PolicyUpdate(world.policy(), stage.estimator(), stage.config)
    exact = world.exact_gradient(update.policy)
    return float((world.expected_gradient(update, 1) - exact).abs().max()), float(exact.abs().max())


@pytest.mark.parametrize("size", [1, 2, 3])
def test_one_step_advantages_of_values_without_error_are_unbiased_for_steps_of_any_length(size):
    error, _ = bias(size)
    assert error < 1e-12


def test_noise_of_the_values_that_the_action_has_no_hand_in_leaves_the_gradient_unbiased():
    """Two draws of the noise of every state, of equal weight: the expectation over them is exact."""

    def noisy(sign):
        return lambda value, prompt, prefix, response: (
            value + sign * math.sin(1 + prompt + 3 * len(prefix) + sum(prefix))
        )

    plain = odd_world()
    total = 0
    for sign in (1, -1):
        world = Valued(plain.theta_SV, plain.offset_PV, plain.reward, plain.max_length, plain.end_token)
        world.valued(Chain(), 1, noisy(sign))
        stage = Stage(whiten=False)
        update = PolicyUpdate(world.policy(), stage.estimator(), stage.config)
        total = total + world.expected_gradient(update, 1) / 2
        exact = world.exact_gradient(update.policy)
    assert (total - exact).abs().max() < 1e-12


def test_a_value_that_holds_the_rollouts_own_outcome_is_seen_to_be_biased():
    world = odd_world()
    error, size = bias(1, lambda value, prompt, prefix, response: (9 * value + world.reward(prompt, response)) / 10)
    assert error > 0.02 * size


def test_a_systematic_error_of_the_values_is_an_error_of_the_gradient():
    """One-step advantages rest on the value behind the step, as GAE below λ = 1 does; continuations have no such error."""
    error, size = bias(1, lambda value, prompt, prefix, response: value + 0.3 * (len(prefix) == 2))
    assert error > 0.02 * size


def test_the_cap_takes_the_gradient_of_what_lies_behind_it():
    def behind(value, prompt, prefix, response):
        return NAN if len(prefix) > 0 else value

    error, size = bias(1, behind)
    assert error > 0.1 * size


# ---- samples that pass through


class Told:
    """An engine that continues prefixes as it is told."""

    def __init__(self) -> None:
        self.end_ids, self.told = (END,), {}

    def generate(self, requests, sampling):
        return [[Rollout(list(self.told[r.prefix_ids]), [], "stop") for _ in r.keys] for r in requests]


def mean_advantages(own: tuple[int, ...], world: EnumerableWorld) -> tuple[list[float], list[float]]:
    """A rollout's advantages, averaged over a sibling and over one continuation of every state; and the exact ones."""
    with torch.no_grad():
        weight = dict(zip(world.responses(), world.log_probabilities(world.policy(), 0).exp().tolist()))

    def inside(prefix):
        return {y: p for y, p in weight.items() if y[: len(prefix)] == prefix}

    def exact(prefix):
        return sum(p * odd(["a" * y.count(A)])[0] for y, p in inside(prefix).items()) / sum(inside(prefix).values())

    stage = Stage(engine=Told(), limit=world.max_length, continuations=1, reuse=True, whiten=False)
    estimator, total = stage.estimator(), torch.zeros(len(own), dtype=F64)
    for sibling, chance in weight.items():
        collected = stage.collected([own, sibling], groups=[0, 0])
        states = sorted({y[:t] for y in (own, sibling) for t in range(len(y))})
        for chosen in itertools.product(*(inside(state) for state in states)):
            likely = chance
            for state, y in zip(states, chosen):
                likely *= weight[y] / sum(inside(state).values())
                stage.engine.engine.told[state] = y[len(state) :]
            batch = dataclasses.replace(collected.batch, queried=estimator.query(collected).reads)
            total += likely * estimator.advantages(batch, {}).advantage_BT[0, : len(own)]
    values = [exact(own[:t]) for t in range(len(own))] + [odd(["a" * own.count(A)])[0]]
    return total.tolist(), [b - a for a, b in itertools.pairwise(values)]


def two_tokens() -> EnumerableWorld:
    return dataclasses.replace(odd_world(), max_length=2)


@pytest.mark.parametrize("own", [(END,), (A, B), (B, A), (A, END)])
def test_what_passes_through_a_state_counts_without_bias(own):
    found, exact = mean_advantages(own, two_tokens())
    assert found == pytest.approx(exact, abs=1e-12)


def test_counting_the_rollout_itself_would_be_biased(monkeypatch):
    monkeypatch.setattr("vantage.montecarlo.passing.value_samples", lambda samples, rollout: samples)
    found, exact = mean_advantages((A, B), two_tokens())
    assert abs(found[0] - exact[0]) > 0.02


def test_reuse_asks_for_nothing_more_and_says_how_many_samples_a_value_has():
    responses, groups = [(A, B, A), (A, B, END), (B, END)], [0, 0, 0]
    plain, reusing = (Stage(continuations=6, reuse=reuse) for reuse in (False, True))
    metrics = [stage.estimator().query(stage.collected(responses, groups=groups)).metrics for stage in (plain, reusing)]
    assert sorted(plain.asked()) == sorted(reusing.asked())
    assert metrics[0]["tokens/value_extra"] == metrics[1]["tokens/value_extra"]
    assert metrics[0]["vineppo/samples_per_value"] == 6
    drawn = {r.prefix_ids: [(*r.prefix_ids, *x.response_ids) for x in group]
             for r, group in zip(reusing.engine.calls[0][0], reusing.engine.given[0])}  # fmt: skip
    expected = 0
    for i, own in enumerate(responses):
        for t in range(len(own)):
            before = [y for n in range(t + 1) for y in drawn[own[:n]]]
            expected += sum(y[:t] == own[:t] for y in before + [y for j, y in enumerate(responses) if j != i])
    assert metrics[1]["vineppo/samples_per_value"] == pytest.approx(expected / 8)
    assert expected > 6 * 8


def test_reuse_does_not_mix_flipped_rewards_with_clean_ones():
    with pytest.raises(UserError, match=r"--vineppo\.reuse"):
        TrainConfig(algo=Vineppo(reuse=True), reward_noise=0.1)


# ---- options and warnings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"continuations": 0}, "--vineppo.continuations is 0"),
        ({"cap": -1}, "--vineppo.cap is -1"),
        ({"tokens": 0}, "--vineppo.tokens: 0"),
        ({"threshold": 1.0}, "--vineppo.threshold: 1.0"),
        ({"lowest": 0}, "--vineppo.lowest: 0"),
        ({"max_segments": 0}, "--vineppo.max-segments: 0"),
        ({"min_segment_tokens": 0}, "--vineppo.min-segment-tokens: 0"),
        ({"min_segment_tokens": 9, "max_segment_tokens": 4}, "--vineppo.max-segment-tokens: 4"),
        ({"separator": ""}, "--vineppo.separator"),
        ({"kind": "sentence"}, "--vineppo.kind"),
    ],
)  # fmt: skip
def test_impossible_options_are_named(options, said):
    with pytest.raises(UserError, match=said):
        Vineppo(**options)


def test_options_reach_the_splitter_and_what_they_leave_open_is_the_tasks():
    chosen = {
        "kind": "fixed",
        "tokens": 7,
        "threshold": 0.1,
        "lowest": 3,
        "max_segment_tokens": None,
        "max_segments": None,
    }
    splitter = Vineppo(**chosen).splitter(separator="|", min_segment_tokens=2)
    assert {name: getattr(splitter, name) for name in chosen} == chosen
    assert (splitter.separator, splitter.min_segment_tokens) == ("|", 2)
    splitter = Vineppo(separator=";", min_segment_tokens=5).splitter(separator="|", min_segment_tokens=2)
    assert (splitter.separator, splitter.min_segment_tokens) == (";", 5)


def test_clean_verdicts_under_noise_are_told():
    config = TrainConfig(algo=Vineppo(), reward_noise=0.1)
    assert "--reward-noise" in config.algo.warnings(config)[0]
    assert Vineppo().warnings(TrainConfig(algo=Vineppo())) == ()


def test_a_first_step_without_steps_is_told():
    config = TrainConfig(algo=Vineppo(kind="newline"))
    (finding,) = first_step({"vineppo/segments_per_response": 1.0, "groups/zero_advantage": 0.0}, config)
    assert str(finding).startswith("warning: no step found")
    assert "--vineppo.kind newline" in str(finding)
    assert first_step({"vineppo/segments_per_response": 1.5, "groups/zero_advantage": 0.0}, config) == []


def test_without_a_trainer_it_says_so():
    setup = Setup(num_layers=1, hidden_size=4, rollouts_per_prompt=1, reward_range=(0.0, 1.0))
    with pytest.raises(ValueError, match="must be built by a Trainer"):
        Vineppo().build(setup).query(Stage().collected([(A, END)]))


# ---- in the trainer


def trained(model, out, **changes):
    settings = {
        "model": str(model), "task": "sums", "steps": 3, "rollouts_per_step": 6, "max_new_tokens": 8, "eval_problems": 0,
        "checkpoint_every": 2, "samples_every": 1, "learning_rate": 1e-3, "lr_schedule": "constant", "device": "cpu",
        "algo": Vineppo(continuations=3, kind="fixed", tokens=3), "out": str(out),
    }  # fmt: skip
    trainer = Trainer(TrainConfig(**(settings | changes)), reward_funcs=odd_length)
    trainer.train()
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return (
        trainer,
        [{k: v for k, v in row.items() if not k.startswith(("time/", "throughput/", "mem/"))} for row in rows],
        rows,
    )


def test_a_resumed_run_ends_as_one_that_went_through_and_nothing_is_stored(small_model, tmp_path):
    trainer, whole, timed = trained(small_model, tmp_path / "whole")
    trained(small_model, tmp_path / "parts", steps=2)
    again, parts, _ = trained(small_model, tmp_path / "parts", resume="auto")
    assert parts == whole
    ours, theirs = (load_file(tmp_path / name / "model/model.safetensors") for name in ("parts", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert trainer.estimator.state_dict() == State() == again.estimator.state_dict()
    trainer.estimator.load_state_dict(State())
    for row, times in zip(whole[1:], timed[1:]):
        assert row["tokens/value_extra"] > row["tokens/generated"]
        assert times["time/value"] > 0
    spent = sum(row["tokens/generated"] + row["tokens/value_extra"] for row in whole[1:])
    assert whole[-1]["tokens/total"] == spent


def test_cutting_into_small_micro_batches_and_several_updates_keeps_the_advantages(small_model, tmp_path):
    def first(**changes):
        config = TrainConfig(
            model=str(small_model), task="sums", steps=1, rollouts_per_step=6, max_new_tokens=8, eval_problems=0,
            algo=Vineppo(continuations=3, kind="fixed", tokens=3), out=str(tmp_path / "none"), device="cpu", **changes,
        )  # fmt: skip
        return Trainer(config, reward_funcs=odd_length).train_step(1)

    whole = first()
    for changes in ({"tokens_per_microbatch": 30}, {"minibatches": 3}, {"generation_batch": 5}):
        part = first(**changes)
        torch.testing.assert_close(part.update.estimate.advantage_BT, whole.update.estimate.advantage_BT)
        assert part.row["tokens/value_extra"] == whole.row["tokens/value_extra"]


def test_the_default_engine_prefills_every_state_once():
    policy = small_policy()
    engine = TransformersEngine(policy, (1,), generation_batch=64)
    widths = []
    plain = policy.next_logits
    policy.next_logits = lambda ids, *rest: (widths.append(tuple(ids.shape)), plain(ids, *rest))[1]
    stage = Stage(continuations=3, kind="fixed", tokens=2, limit=6)
    stage.chain.policy, stage.engine = policy, Counting(engine)
    estimator = stage.estimator()
    estimator.query(stage.collected([(5, 6, 7, 8, 9), (5, 6, 7, 8, 10), (5, 6, 11)], groups=[0, 0, 0]))
    prefills = [rows for rows, width in widths if width > 1]
    assert sum(prefills) == 3  # the prompt, 5 6, and 5 6 7 8
