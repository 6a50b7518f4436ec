"""GenAC at work: T3 of the sheet, unbiasedness by enumeration, stages, failures, hold-out, resume."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

from tests.genac.made import save_schooled_critic
from tests.helpers import load_in_turns, together
from tests.odd import odd_length as odd
from tests.test_enumerable import config as enumerable_config
from tests.test_enumerable import odd_world
from vantage.batch import Batch
from vantage.config import TrainConfig
from vantage.distributed.world import World
from vantage.errors import UserError
from vantage.estimators.base import Estimate, Estimator
from vantage.estimators.genac import Genac
from vantage.genac.critic import Opinion
from vantage.genac.estimator import GenacEstimator
from vantage.genac.lessons import lessons
from vantage.genac.panel import judge
from vantage.rollout.engine import Rollout
from vantage.segment_credit import gae, over_tokens, segment_numbers
from vantage.segments import Segments
from vantage.tasks import get_task
from vantage.tasks.base import Problem
from vantage.trainer import Trainer
from vantage.update import PolicyUpdate

STARTS, VALUES = (0, 3, 6, 9), [0.4, 0.6, 0.3, 0.8]


def bare(**options) -> GenacEstimator:
    """The estimator without a critic: enough for what follows from values."""
    found = GenacEstimator.__new__(GenacEstimator)
    found.options, found.world = Genac(**{"whiten": False, **options}), World()
    return found


def batch_of(rewards, cuts, values, last=None, scorable=None) -> Batch:
    reward_B = torch.tensor(rewards, dtype=torch.float64)
    number_BT = segment_numbers(cuts)
    return Batch(
        step=1,
        prompt_ids=[[5]] * len(cuts),
        response_ids=[[6] * cut.length for cut in cuts],
        group_B=torch.arange(len(cuts)),
        outcome_B=reward_B,
        reward_B=reward_B,
        scorable_B=torch.tensor(scorable or [True] * len(cuts)),
        domains=["default"] * len(cuts),
        queried={
            "value_MT": over_tokens(values, number_BT),
            "segment_MT": number_BT,
            "last": torch.tensor(last or [math.nan] * len(cuts), dtype=torch.float64),
        },
    )


def token_advantages(reward, **options) -> list[float]:
    last = options.pop("last", None)
    batch = batch_of([reward], [Segments(STARTS, 10)], [VALUES], last)
    return bare(**options).advantages(batch, {}).advantage_BT[0].tolist()


T3 = {
    1.0: ([0.6, 0.4, 0.7, 0.2], [-0.4, -0.6, -0.3, -0.8]),
    0.95: ([0.537725, 0.3555, 0.69, 0.2], [-0.31965, -0.547, -0.26, -0.8]),
    0.5: ([0.2, 0, 0.6, 0.2], [0.075, -0.25, 0.1, -0.8]),
    0.0: ([0.2, -0.3, 0.5, 0.2], [0.2, -0.3, 0.5, -0.8]),
}


def spread(row):
    return [row[k] for k in (0, 0, 0, 1, 1, 1, 2, 2, 2, 3)]


@pytest.mark.parametrize("lam", T3)
def test_t3_advantages_of_segments_are_those_of_their_tokens(lam):
    success, failure = T3[lam]
    assert token_advantages(1.0, gae_lambda=lam) == pytest.approx(spread(success), abs=1e-12)
    assert token_advantages(0.0, gae_lambda=lam) == pytest.approx(spread(failure), abs=1e-12)


def test_t11_lambda_below_1_keeps_terminal_credit_by_segments_and_not_by_tokens():
    """Sixteen segments of eight tokens, values 0: the first one keeps 0.95^15 of the reward, all its tokens alike."""
    batch = batch_of([1.0], [Segments(tuple(range(0, 128, 8)), 128)], [[0.0] * 16])
    row = bare(gae_lambda=0.95).advantages(batch, {}).advantage_BT[0].tolist()
    assert row[:8] == pytest.approx([0.46329123] * 8, abs=1e-8)
    assert row[-8:] == pytest.approx([1.0] * 8)


@pytest.mark.parametrize(
    ("share", "length", "kept"),
    [(0.48, 16, 0.67794909), (0.48, 128, 0.04462484), (0.48, 1024, 1.5726e-11), (1.0, 128, 0.00140806)],
)
def test_t11_frequent_boundaries_lose_the_terminal_credit(share, length, kept):
    """Each of L tokens is a boundary with that probability: the expected credit of the first token, over their number."""
    chances = [
        math.exp(
            math.lgamma(length + 1) - math.lgamma(k + 1) - math.lgamma(length - k + 1)
            + k * math.log(share) + ((length - k) * math.log(1 - share) if k < length else 0.0)
        )
        if share < 1 or k == length else 0.0
        for k in range(length + 1)
    ]  # fmt: skip
    credit = [gae([0.0] * (k + 1), 1.0, 0.95)[0] for k in range(length + 1)]
    assert math.fsum(chances) == pytest.approx(1.0)
    assert math.fsum(p * c for p, c in zip(chances, credit)) == pytest.approx(kept, rel=1e-4)


def test_t3_whitened_over_the_tokens_of_the_step():
    found = token_advantages(1.0, gae_lambda=0.95, whiten=True)
    assert found == pytest.approx(spread([0.2491987, -0.81284265, 1.13668586, -1.71912571]), abs=1e-7)


def test_t3_the_final_actions_value_is_the_baseline_of_the_last_token_alone():
    found = token_advantages(1.0, final_action=True, last=[0.9])
    assert found == pytest.approx([0.6] * 3 + [0.4] * 3 + [0.7] * 3 + [0.1], abs=1e-12)


def test_values_are_those_of_segments_and_an_unscorable_rollout_moves_nothing():
    cuts = [Segments((0, 1), 3), Segments((0,), 1)]
    batch = batch_of([1.0, math.nan], cuts, [[0.3, 0.6], [0.2]], scorable=[True, False])
    found = bare(whiten=True).advantages(batch, {})
    assert found.value_BT.tolist() == [[0.3, 0.6, 0.6], [0.2, 0.0, 0.0]]
    assert found.advantage_BT[1].tolist() == [0.0, 0.0, 0.0]
    assert found.advantage_BT[0].sum() == pytest.approx(0.0, abs=1e-12)


class Table(Estimator):
    """Values of prefixes from a table, through GenAC's own advantages; `seen` tokens too many are read for them."""

    def __init__(self, options: dict, seen: int = 0) -> None:
        self.inner, self.seen = bare(**options), seen

    def value(self, prefix) -> float:
        return math.sin(1 + sum((i + 2) * (t + 1) ** 2 for i, t in enumerate(prefix))) / 2 + 0.5

    def advantages(self, batch: Batch, reads) -> Estimate:
        cuts = [Segments(tuple(range(len(ids))), len(ids)) for ids in batch.response_ids]
        rows = [[self.value(ids[: k + self.seen]) for k in range(len(ids))] for ids in batch.response_ids]
        number_BT = segment_numbers(cuts)
        last = torch.full((batch.size,), math.nan, dtype=torch.float64)
        queried = {"value_MT": over_tokens(rows, number_BT), "segment_MT": number_BT, "last": last}
        return self.inner.advantages(dataclasses.replace(batch, queried=queried), reads)


def bias(estimator: Estimator) -> float:
    world = odd_world()
    update = PolicyUpdate(world.policy(), estimator, enumerable_config())
    exact = world.exact_gradient(update.policy)
    return float((world.expected_gradient(update, 1) - exact).norm() / exact.norm())


def test_at_lambda_1_any_value_of_the_past_leaves_the_gradient_unbiased():
    assert bias(Table({})) < 1e-12


def test_a_prefix_with_the_segment_inside_is_seen_to_bias_and_so_is_a_small_lambda():
    assert bias(Table({}, seen=1)) > 0.05
    assert bias(Table({"gae_lambda": 0.0})) > 0.05


# --- with a critic ------------------------------------------------------------------------------------------------------


def options(**changes) -> Genac:
    base = {
        "critic": "copy",
        "sft_steps": 0,
        "success_problems": 4,
        "critic_tokens": 6,
        "panel_every": 1,
        "gates": "warn",
    }
    return Genac(**(base | changes))


def trainer(model, out, algo=None, world=None, **changes) -> Trainer:
    settings = {
        "model": str(model), "out": str(out), "algo": algo or options(), "task": "sums", "steps": 4, "rollouts_per_step": 32,
        "max_new_tokens": 8, "eval_problems": 0, "checkpoint_every": 0, "samples_every": 0, "learning_rate": 1e-3,
    }  # fmt: skip
    return Trainer(TrainConfig(**(settings | changes)), reward_funcs=odd, world=world)


def scripted(estimator: GenacEstimator, say) -> list:
    """Let the critic say `say(view, number of the sample)`; returns the list of what it is asked."""
    tokenizer, asked = estimator.critic.policy.tokenizer, []

    def ask(views, keys, actor, soft=False):
        found = []
        for view, some in zip(views, keys):
            texts = [say(view, j) for j in range(len(some))]
            rollouts = [
                Rollout(tokenizer(t, add_special_tokens=False)["input_ids"], [0.0] * len(t), "stop") for t in texts
            ]
            ids = estimator.critic.template.encode(tokenizer, view, actor)
            found.append(Opinion(ids, rollouts, [estimator.critic.tag.value(t) for t in texts]))
            asked.append((view, actor.rate, len(some)))
        return found

    estimator.critic.ask = ask
    return asked


def outcomes_to_come(run) -> dict[tuple[str, str], int]:
    """Scores of a step's states by problem and prefix, filled in before the critic is asked about them."""
    outcome, query = {}, run.estimator.query

    def peek(collected):
        batch = collected.batch
        for problem, ids, r in zip(collected.problems, batch.response_ids, batch.outcome_B.tolist()):
            for k in range(len(ids)):
                prefix = run.policy.tokenizer.decode(ids[:k], clean_up_tokenization_spaces=False)
                outcome[problem.prompt, prefix] = round(10 * r)
        return query(collected)

    run.estimator.query = peek
    return outcome


def weights_of(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b))


def test_the_policy_rests_until_the_gates_open_and_the_critic_learns_all_the_while(small_model, tmp_path, capsys):
    run = trainer(small_model, tmp_path, options(panel_share=0.0, segmentation="fixed", segment_tokens=2))
    found = run.estimator
    scripted(found, lambda view, j: "x")
    start, critic = weights_of(run.policy.model), weights_of(found.critic.policy.model)
    row = run.train_step(1).row
    assert (row["genac/parse_rate"], row["genac/stage"], row["genac/brier_penalised"]) == (0.0, 1.0, 1.0)
    assert row["genac/fallbacks"] == 1.0
    assert same(start, weights_of(run.policy.model))
    assert same(critic, weights_of(found.critic.policy.model))  # all failures: no reward differs from its baseline
    said = capsys.readouterr().err
    assert "while the policy rests" in said
    assert "0.000 of its answers" in said

    outcome = outcomes_to_come(run)

    def oracle(view, j):  # knows how every state will end, nearly
        return f"[{abs(outcome.get((view.problem, view.prefix), 5) - j % 2)}]"

    scripted(found, oracle)
    row = run.train_step(2).row
    assert row["genac/stage"] == 2.0
    assert row["genac/brier"] < row["genac/brier_constant"]
    assert not same(start, weights_of(run.policy.model))
    assert not same(critic, weights_of(found.critic.policy.model))
    assert "joint training begins after 1 steps" in capsys.readouterr().err


def test_closed_gates_stop_the_run_or_warn_in_one_line(small_model, tmp_path, capsys):
    run = trainer(small_model, tmp_path / "a", options(gates="stop", pretrain_steps=1))
    scripted(run.estimator, lambda view, j: "x")
    run.train_step(1)
    with pytest.raises(UserError, match=r"does not pass the gates after 1 steps.*--genac\.pretrain-steps"):
        run.train_step(2)
    run = trainer(small_model, tmp_path / "b", options(pretrain_steps=0))
    scripted(run.estimator, lambda view, j: "[5]")
    assert run.train_step(1).row["genac/stage"] == 2.0
    assert "it is used all the same" in capsys.readouterr().err
    run = trainer(small_model, tmp_path / "c", options(pretrain_steps=1, gates="off"))
    scripted(run.estimator, lambda view, j: "x")
    assert [run.train_step(n).row["genac/stage"] for n in (1, 2)] == [1.0, 2.0]


def test_many_failures_hold_the_policy_for_that_step_only(small_model, tmp_path):
    run = trainer(small_model, tmp_path, options(pretrain_steps=0))
    start = weights_of(run.policy.model)
    scripted(run.estimator, lambda view, j: "x" if view.prefix == "" else "[5]")
    assert run.train_step(1).row["genac/held"] == 1.0
    assert same(start, weights_of(run.policy.model))
    scripted(run.estimator, lambda view, j: "[5]")
    assert run.train_step(2).row["genac/held"] == 0.0
    assert not same(start, weights_of(run.policy.model))


def test_a_failure_takes_the_value_of_the_state_before_it_or_the_success_rate(small_model, tmp_path):
    run = trainer(small_model, tmp_path, options(segmentation="fixed", segment_tokens=2))
    found = run.estimator
    scripted(found, lambda view, j: {0: "x", 2: "[3]", 4: "x"}.get(view.used, "[9]"))
    found.actor.rate = 0.25
    collected = run.collector(1, run.stream, 0)
    value_BT = found.query(collected).reads["value_MT"]
    for row, length in zip(value_BT.tolist(), collected.batch.length_B.tolist()):
        assert row[:length] == pytest.approx([0.25, 0.25, 0.3, 0.3, 0.3, 0.3, 0.9, 0.9][:length])


def test_the_rate_in_the_prompt_is_that_of_earlier_batches(small_model, tmp_path):
    run = trainer(small_model, tmp_path)
    asked = scripted(run.estimator, lambda view, j: "[5]")
    rates, means = [], []
    for n in (1, 2, 3):
        before = len(asked)
        means.append(run.train_step(n).row["reward/mean"])
        rates.append({rate for _, rate, _ in asked[before:]})
    # the panel is asked with the rate of its own time, which is the first batch's
    first = next(iter(rates[0]))
    second = 0.9 * first + 0.1 * means[0]
    assert len(rates[0]) == 1
    assert sorted(rates[1]) == pytest.approx(sorted([first, second]))
    assert sorted(rates[2]) == pytest.approx(sorted([first, 0.9 * second + 0.1 * means[1]]))


def test_a_shared_prompt_gets_as_many_samples_as_siblings_and_the_held_out_problems_are_never_learned(
    small_model, tmp_path
):
    run = trainer(small_model, tmp_path, options(panel_share=0.25))
    found = run.estimator
    learned = []
    found.trainer.step = lambda examples, weight: learned.append(examples) or _learned()
    asked = scripted(found, lambda view, j: "[5]")
    run.train_step(1)
    states = asked[: len(asked) - len(found.panel.views)]
    assert all(count == 8 for view, _, count in states if view.used == 0)
    assert len(found.panel.held_out) >= 1
    prompts = [found.critic.policy.tokenizer.decode(e.prompt_ids) for e in learned[0]]
    assert prompts
    assert not any(f";{problem}\n" in prompt for prompt in prompts for problem in found.panel.held_out)
    assert all(e.scale == 1 for e in learned[0])


def _learned():
    from vantage.genac.reinforce import Learned

    return Learned(0.0, 0.0, True, 0.0, 1)


def test_some_states_are_drawn_whole_and_weighed_by_one_over_their_chance(small_model, tmp_path):
    run = trainer(small_model, tmp_path, options(train_states=3, panel_share=0.0))
    found, learned = run.estimator, []
    found.trainer.step = lambda examples, weight: learned.append(examples) or _learned()
    asked = scripted(found, lambda view, j: "[5]")
    total, scale = 0, 0.0
    for n in range(1, 9):
        before = len(asked)
        run.train_step(n)
        states = asked[before:]
        chance = 3 / len(states)
        assert all(e.scale == pytest.approx(1 / chance) for e in learned[-1])
        sizes = {}
        for e in learned[-1]:
            sizes[tuple(e.prompt_ids)] = sizes.get(tuple(e.prompt_ids), 0) + 1
        counts = {tuple(found.critic.encode([view], found.actor)[0]): n for view, _, n in states}
        total, scale = total + len(sizes), scale + sum(e.scale for e in learned[-1]) / sum(n for *_, n in states)
        assert all(n == 8 or n == counts.get(ids, n) for ids, n in sizes.items())
    assert 8 <= total <= 48  # 24 in expectation
    assert 0.2 < scale / 8 < 2.5  # 1 in expectation


def test_tokens_of_the_critic_and_of_the_first_rate_are_counted(small_model, tmp_path):
    run = trainer(small_model, tmp_path, options(panel_share=0.0))
    row = run.train_step(1).row
    assert row["tokens/value_extra"] > row["genac/completions"] * row["genac/completion_length"]  # and the first rate
    row = run.train_step(2).row
    assert row["tokens/value_extra"] == pytest.approx(row["genac/completions"] * row["genac/completion_length"])
    assert row["genac/length_stops"] > 0.5


@pytest.fixture(scope="module")
def schooled(tmp_path_factory) -> str:
    return str(save_schooled_critic(tmp_path_factory.mktemp("critic") / "schooled"))


def test_resume_is_bit_identical_with_critic_optimizer_rate_stage_and_panel(small_model, schooled, tmp_path):
    algo = options(critic=schooled, pretrain_steps=1, max_failures=0.5, critic_learning_rate=1e-3)
    whole = trainer(small_model, tmp_path / "a", algo)
    whole.progress = whole.run.open(whole)
    rows = [whole.train_step(n).row for n in (1, 2)]
    whole.checkpoint()
    rows += [whole.train_step(n).row for n in (3, 4)]
    state = whole.estimator.state_dict()
    again = trainer(small_model, tmp_path / "b", algo, resume=str(tmp_path / "a" / "checkpoints" / "step-000002"))
    again.progress = again.run.open(again)
    theirs = [again.train_step(n).row for n in (3, 4)]
    found = again.estimator.state_dict()
    assert found.values == state.values
    assert found.tensors.keys() == state.tensors.keys()
    assert any(name.startswith("optimizer.") for name in state.tensors)
    assert all(torch.equal(found.tensors[name], value) for name, value in state.tensors.items())
    assert rows[-1]["genac/parse_rate"] > 0.5
    assert rows[-1]["genac/critic_skipped"] == 0.0
    assert same(weights_of(again.policy.model), weights_of(whole.policy.model))
    kept = lambda row: {k: v for k, v in row.items() if not k.startswith(("time/", "mem/", "throughput/"))}  # noqa: E731
    for ours, expected in zip(theirs, rows[2:]):
        assert kept(ours) == pytest.approx(kept(expected), rel=0, abs=0, nan_ok=True)


def test_two_processes_give_the_values_and_the_critic_of_one(small_model, schooled, tmp_path, monkeypatch):
    """Of 2 processes with 4 prompt groups, and of 5, of which one has nothing to do."""
    load_in_turns(monkeypatch)
    algo = options(critic=schooled, pretrain_steps=0, max_failures=0.5, critic_learning_rate=1e-3, final_action=True)

    def work(world):
        run = trainer(small_model, tmp_path / "unused", algo, world=world)
        rows = [run.train_step(n).row for n in (1, 2)]
        return rows, run.estimator.state_dict(), weights_of(run.policy.model)

    rows, state, policy = work(World())
    assert rows[1]["genac/critic_skipped"] == 0.0
    for size in (2, 5):
        for theirs, found, moved in together(size, work):
            for name, value in state.tensors.items():
                if name.startswith("critic."):
                    torch.testing.assert_close(found.tensors[name], value, rtol=0, atol=1e-5)
            assert found.values == {**state.values, "actor": {"rate": pytest.approx(state.values["actor"]["rate"])}}
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(moved, policy))
            for ours, expected in zip(theirs, rows):
                kept = {k: v for k, v in expected.items() if k.startswith(("genac/", "tokens/", "value/"))}
                assert {k: ours[k] for k in kept} == pytest.approx(kept, rel=1e-3, abs=1e-4, nan_ok=True)


def test_a_checkpoint_of_another_prompt_or_another_critic_is_refused(small_model, tmp_path):
    state = trainer(small_model, tmp_path / "a").estimator.state_dict()
    other = trainer(small_model, tmp_path / "b", options(icc=False)).estimator
    with pytest.raises(UserError, match="reads another prompt"):
        other.load_state_dict(state)
    tensors = dict(list(state.tensors.items())[1:])
    with pytest.raises(UserError, match="other weights"):
        trainer(small_model, tmp_path / "c").estimator.load_state_dict(dataclasses.replace(state, tensors=tensors))


def test_a_run_leaves_its_critic_and_the_next_one_begins_with_it(small_model, tmp_path, capsys):
    run = trainer(small_model, tmp_path / "a", options(pretrain_steps=0), steps=1)
    run.train()
    card = json.loads((tmp_path / "a" / "critic" / "critic.json").read_text())
    assert card["stage"] == "joint"
    assert card["critic_tokens"] == 6
    following = trainer(small_model, tmp_path / "b", options(critic=str(tmp_path / "a"), critic_tokens=None)).estimator
    assert same(weights_of(following.critic.policy.model), weights_of(run.estimator.critic.policy.model))
    assert following.course.stage == "pretrain"
    assert following.critic.sampling.max_new_tokens == 6


def test_an_untaught_critic_goes_to_school_with_the_worlds_own_oracle(small_model, tmp_path, capsys):
    run = trainer(
        small_model, tmp_path, options(sft_steps=2, sft_examples=32, sft_batch=8, sft_own=0.0, critic_tokens=128)
    )
    assert run.estimator.course.stage == "sft"
    before = weights_of(run.estimator.critic.policy.model)
    run.train_step(1)
    said = capsys.readouterr().err
    assert "learns from 32 traces how to reason" in said
    assert "supervised step 2/2" in said
    assert run.estimator.course.stage == "pretrain"
    assert not same(before, weights_of(run.estimator.critic.policy.model))


def test_the_worlds_lessons_are_in_part_about_the_policys_own_states(small_model, tmp_path):
    def taught(share):
        estimator = trainer(
            small_model, tmp_path / f"{share}", options(sft_examples=40, sft_own=share, critic_tokens=128)
        ).estimator
        estimator.actor.rate = 0.3719
        parts = estimator.critic, estimator.actor, estimator.splitter, estimator.world
        return lessons(estimator.options, estimator.services, *parts)

    traces, tokens, _ = taught(0.5)
    own = [t for t in traces if t.rate == 0.3719]  # rates of demonstrations have two digits
    assert 1 <= len(own) <= 20
    assert len({t.rate for t in traces}) > 5
    assert tokens > 0
    task = get_task("sums")
    for t in own:
        said = task.critique(Problem(t.problem), t.prefix, 0.3719)
        assert t.completion == f"{said.text}[{math.floor(10 * said.value + 0.5)}]"
    traces, tokens, _ = taught(0.0)
    assert tokens == 0
    assert len(traces) == 40
    assert not [t for t in traces if t.rate == 0.3719]


def test_a_teacher_judges_the_policys_own_states(small_model, tmp_path, capsys, monkeypatch):
    from vantage.genac import lessons as module

    run = trainer(
        small_model, tmp_path, options(teacher="copy", sft_steps=1, sft_examples=12, sft_batch=4, sft_continuations=2)
    )
    begun = module.begin

    def begin(*arguments, **keywords):
        found = begun(*arguments, **keywords)
        estimator = GenacEstimator.__new__(GenacEstimator)
        estimator.critic = found.critic
        scripted(estimator, lambda view, j: ["x", "[5]", "[0]", "[9]"][j])
        return found

    monkeypatch.setattr(module, "begin", begin)
    row = run.train_step(1).row
    assert "traces how to reason" in capsys.readouterr().err
    assert row["tokens/value_extra"] > 250


def test_more_samples_and_the_expected_reading_are_asked_for(small_model, tmp_path):
    run = trainer(
        small_model,
        tmp_path,
        options(samples=3, reading="expected", rollouts_per_prompt=None) if False else options(samples=3),
    )
    asked = scripted(run.estimator, lambda view, j: f"[{j}]")
    row = run.train_step(1).row
    assert min(count for view, _, count in asked if count > 1) == 3
    assert row["genac/parse_rate"] == 1.0
    run = trainer(small_model, tmp_path / "e", options(reading="expected"))
    seen = []
    ask = run.estimator.critic.ask
    run.estimator.critic.ask = lambda views, keys, actor, soft=False: seen.append(soft) or ask(views, keys, actor, soft)
    run.train_step(1)
    assert seen[0] is True


BAD = {
    "samples": 0, "critic_tokens": 0, "gae_lambda": 1.1, "momentum": -0.1, "gamma": 0.0, "lowprob": 1.0, "panel_share": 0.6,
    "critic_learning_rate": 0.0, "train_states": -1, "sft_tolerance": 2.0,
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_an_option_outside_of_its_range_is_named(name):
    with pytest.raises(UserError, match=f"--genac.{name.replace('_', '-')} is {BAD[name]}"):
        Genac(**{name: BAD[name]})


def test_two_sources_of_traces_are_one_too_many():
    with pytest.raises(UserError, match="give one of them"):
        Genac(traces="a", teacher="b")


def test_the_brier_score_of_the_step_is_measured_on_states_before_they_are_learned(small_model, tmp_path):
    run = trainer(small_model, tmp_path, options(panel_share=0.0))
    scripted(run.estimator, lambda view, j: "[3]")
    row = run.train_step(1).row
    rate = row["reward/mean"]
    assert row["genac/brier"] == pytest.approx(rate * 0.49 + (1 - rate) * 0.09, abs=0.05)
    assert judge([0.3], [1.0]).brier == pytest.approx(0.49)
