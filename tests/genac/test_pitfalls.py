"""The sheet's list of pitfalls (papers/genac.md §12): which test holds each, and the tests that are nowhere else.

 1 causality                        test_critic.test_a_state_holds_nothing_of_what_follows_it, test_genac (bias by enumeration)
 2 last token                       test_genac.test_t3_the_final_actions_value_…
 3 ends of fixed chunks             here
 4 packed batches                   impossible: rows are padded, never packed
 5 λ below 1 per token              test_genac.test_t11_…; λ is applied to segments alone
 6 tool outputs                     no multi-turn environments yet
 7 thinning keeps order and start   here
 8 log-probs at the temperature     the trainer takes its own old log-probs; the critic is at temperature 1
 9 failure is no value of 0         test_parsing, test_genac.test_a_failure_takes_…
10 length stops apart from failures here
11 thinking blocks                  test_prompt.test_the_critics_own_chat_template_is_used_and_thinking_is_off
12 end ids; the tag stays           test_traces.test_prompts_and_completions_are_encoded_…
13 one limit everywhere             here
14 tags in prompt or prefix         test_critic.test_the_value_of_a_state_…
15 empty generations, no signal     test_reinforce.test_nothing_to_learn_from_skips_the_step_on_all_processes
16 raw rewards near 1               test_reinforce.test_t12_…
17 class imbalance                  test_panel.test_ties_count_half_and_an_all_zero_critic_…
18 copies before the baseline       test_reinforce.test_t4_a_single_sample_…
19 inclusion probability            test_genac.test_some_states_are_drawn_whole_…; no fallback, an empty draw skips the step
20 logits at generated positions    here; float32 weights: test_critic.test_a_critic_that_learns_…
21 global normaliser                test_reinforce.test_neither_micro_batches_nor_processes_change_the_step
22 no truncated prompt              test_prompt.test_a_prompt_that_does_not_fit_is_refused_and_never_cut
23 target in [0, 1], before shaping test_parsing.test_a_target_outside_…, and here
24 one critic version a rollout     a step's completions are drawn before its update, with one set of weights
25, 26, 28, 36 asynchrony           synchronous
27 resume with critic and optimizer test_genac.test_resume_…, test_genac.test_a_checkpoint_of_another_…
29 a resting policy                 here
30 leaks of the success rate        test_prompt.test_t6_…, test_genac.test_the_rate_in_the_prompt_…
31 whole prompts are held out       test_panel, test_genac.test_a_shared_prompt_…, and here
32 seeds; what a teacher sees       here
33 the critic's own tokenizer       test_prompt; prefixes are decoded from the actor's ids
34 separation guard                 off, as in the code that had it
35 filters come after ρ             here
"""

from __future__ import annotations

import math

import pytest

from tests.estimators.test_genac import options, scripted, trainer
from tests.helpers import small_policy
from vantage.genac.asking import shares
from vantage.genac.lessons import SFT_SEED
from vantage.genac.reinforce import CriticTrainer, Example
from vantage.randomness import Stream, key
from vantage.segments import Splitter, split


@pytest.mark.parametrize("n", [1, 4, 5, 8, 9])
def test_3_no_fixed_chunk_starts_at_the_end_of_a_response(n):
    cut = split([7] * n, Splitter("fixed", tokens=4, min_segment_tokens=1))
    assert cut.starts == tuple(range(0, n, 4))
    assert cut.starts[-1] < n


def test_7_thinning_keeps_the_first_state_and_the_order():
    cut = split([7] * 100, Splitter("fixed", tokens=3, min_segment_tokens=1, max_segments=5))
    assert cut.starts[0] == 0
    assert list(cut.starts) == sorted(set(cut.starts))
    assert len(cut) == 5


def test_10_and_13_length_stops_are_counted_apart_and_the_limit_is_the_same_for_every_use(small_model, tmp_path):
    run = trainer(small_model, tmp_path, options(panel_share=0.25, critic_tokens=5))
    limits = []
    generate = run.estimator.critic.engine.generate

    def watched(requests, sampling):
        limits.append((sampling.max_new_tokens, sampling.stop, sampling.temperature))
        return generate(requests, sampling)

    run.estimator.critic.engine.generate = watched
    row = run.train_step(1).row
    assert set(limits) == {(5, ("]",), 1.0)}
    assert len(limits) == 2  # the step's states and the panel
    assert row["genac/length_stops"] > 0.5
    assert row["genac/parse_rate"] < 0.5


def test_20_the_critics_update_takes_logits_at_generated_positions_only(monkeypatch):
    policy = small_policy()
    rows = []
    logits = type(policy.head).logits
    monkeypatch.setattr(type(policy.head), "logits", lambda head, x: (rows.append(len(x)), logits(head, x))[1])
    trainer = CriticTrainer(policy, learning_rate=1e-3)
    trainer.step([Example([5] * 30, [6, 7, 8], 1.0, 1.0), Example([5] * 40, [6], 0.0, 0.0)], [1.0, -0.5])
    assert rows == [4]  # of 74 positions


def test_23_the_target_is_the_raw_outcome_as_a_share_of_the_range(small_model, tmp_path):
    run = trainer(
        small_model,
        tmp_path,
        options(panel_share=0.0),
        reward_range=(-1.0, 1.0),
        overlong_buffer=7,
        overlong_penalty=5.0,
    )
    scripted(run.estimator, lambda view, j: "[5]")
    collected = run.collector(1, run.stream, 0)
    batch = collected.batch
    assert float(batch.reward_B.min()) < -1  # what the policy is paid has left the range
    assert set(shares(batch, -1.0, 1.0)) <= {0.5, 1.0}
    run.estimator.query(collected)
    assert all(0.5 <= target <= 1 for target in run.estimator.asked.targets)
    # and values come back in the reward's own units: a score of 5 is the middle of −1 … 1
    assert run.estimator.query(collected).reads["value_MT"].abs().max() == 0


def test_29_a_resting_policy_takes_no_step_and_its_schedule_stands_still(small_model, tmp_path):
    run = trainer(small_model, tmp_path, options(pretrain_steps=2, gates="off", panel_share=0.0))
    scripted(run.estimator, lambda view, j: f"[{j}]")
    for n in (1, 2):
        run.train_step(n)
        assert run.update.updates_done == 0
        assert not run.update.optimizer.state
        assert all(p.grad is None for p in run.policy.model.parameters())
    run.train_step(3)
    assert run.update.updates_done == 1
    assert run.update.optimizer.state


def test_31_problems_of_the_lessons_are_not_held_out(small_model, tmp_path):
    run = trainer(small_model, tmp_path / "a", options(panel_share=0.5))
    scripted(run.estimator, lambda view, j: "[5]")
    run.train_step(1)
    held_out = run.estimator.panel.held_out
    run = trainer(small_model, tmp_path / "b", options(panel_share=0.5))
    scripted(run.estimator, lambda view, j: "[5]")
    run.estimator.taught = frozenset(sorted(held_out)[:1])
    run.train_step(1)
    assert run.estimator.panel.held_out
    assert not run.estimator.panel.held_out & run.estimator.taught


def test_32_lessons_are_drawn_apart_from_training_and_show_no_outcome(small_model, tmp_path):
    seed, other = 5, 5 + SFT_SEED
    assert key(seed, Stream.CRITIC, 7, 0, 0) != key(other, Stream.CRITIC, 7, 0, 0) != key(seed, Stream.ROLLOUT, 7, 0, 0)
    from tests.genac.test_traces import trace
    from vantage import tiny
    from vantage.genac.prompt import FULL, Template, template_for

    tokenizer = tiny.tokenizer()
    for template in (template_for(tokenizer), Template(FULL)):
        good, bad = (
            template.render(t.view, t.solver) for t in (trace(outcome=1.0, truth=1.0), trace(outcome=0.0, truth=0.0))
        )
        assert good == bad


def test_35_the_success_rate_is_that_of_everything_generated_before_any_filter(small_model, tmp_path):
    run = trainer(
        small_model, tmp_path, options(panel_share=0.0, success_problems=0), group_filter="equal", filter_rounds=2
    )
    scripted(run.estimator, lambda view, j: "[5]")
    step = run.train_step(1)
    assert step.row["groups/filtered"] > 0
    assert run.estimator.actor.rate == pytest.approx(step.row["reward/mean"])
    known = step.collected.batch.outcome_B.mean()
    assert not math.isclose(run.estimator.actor.rate, float(known), abs_tol=1e-3)
