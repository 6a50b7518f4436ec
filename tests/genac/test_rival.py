"""The discriminative critic that the generative one is compared with before its values move the policy."""

from __future__ import annotations

import math

import pytest
import torch

from tests.estimators.test_genac import options, outcomes_to_come, same, scripted, trainer, weights_of
from tests.helpers import load_in_turns, together
from vantage.distributed.world import World
from vantage.errors import UserError
from vantage.estimators.genac import Genac
from vantage.genac.panel import judge
from vantage.genac.rival import state_targets
from vantage.genac.stages import Gates
from vantage.genac.states import states_of
from vantage.segments import Segments
from vantage.tiny import tokenizer


def algorithm(**changes) -> Genac:
    """With a rival, and critics that never pass, so that pretraining lasts."""
    return options(**({"rival_steps": 2, "pretrain_steps": 4, "panel_share": 0.0, "panel_every": 0} | changes))


def asked(run):
    """Rollouts of the first step and what the critic was asked about them."""
    collected = run.collector(1, run.stream, 0)
    run.estimator.query(collected)
    return collected.batch, run.estimator.asked


def test_gates_compare_once_the_rival_has_learned_for_long_enough():
    found, gates = judge([0.7, 0.3], [1.0, 0.0]), Gates(rival_steps=3)  # squared error 0.09, constant 0.25
    assert gates.complaints(found) == []
    assert gates.complaints(found, (2, 0.5)) == ["the discriminative critic beside it has learned from 2 of 3 steps"]
    assert gates.complaints(found, (3, 0.1)) == []
    assert gates.complaints(found, (3, 0.09)) == ["its squared error is 0.0900, that of a discriminative critic 0.0900"]
    assert len(gates.complaints(found, (3, math.nan))) == 1  # what can not be compared is not better
    failed = judge([0.7, None], [1.0, 0.0])
    assert any("discriminative" in text for text in gates.complaints(failed, (3, 0.4)))  # a failure counts as 1


@pytest.mark.parametrize("final", [False, True])
def test_targets_stand_where_states_begin(final):
    prompts, responses = [[5], [5], [6]], [[7, 8, 9, 7], [7, 8, 7, 7], [9, 9]]
    cuts = [Segments((0, 2), 4), Segments((0, 2), 4), Segments((0,), 2)]
    states = states_of(["a", "a", "b"], prompts, responses, cuts, [0, 0, 1], tokenizer(), 8, final)
    wanted = states.targets([1.0, 0.0, math.nan])
    mask_BT = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    target_BT, known_BT = state_targets(states, wanted, mask_BT)
    # The prompt and the first two tokens are shared by both responses; the last token's state is not.
    assert target_BT.tolist() == [[0.5, 0, 0.5, float(final)], [0.5, 0, 0.5, 0], [0, 0, 0, 0]]
    assert known_BT.tolist() == [[True, False, True, final]] * 2 + [[False] * 4]  # an unscorable one teaches nothing


def test_it_begins_with_no_opinion_and_learns_from_the_same_states(small_model, tmp_path, capsys):
    run = trainer(small_model, tmp_path, algorithm(segmentation="fixed", segment_tokens=2))
    scripted(run.estimator, lambda view, j: "[5]")
    start = weights_of(run.policy.model)
    rows = [run.train_step(n).row for n in (1, 2, 3, 4, 5)]
    assert rows[0]["genac/brier_rival"] == 0.25  # outcomes are 0 or 1, and a half is expected of all
    assert [row["genac/stage"] for row in rows] == [1.0, 1.0, 1.0, 1.0, 2.0]  # "[5]" is never better than a constant
    assert 0 < rows[-1]["genac/brier_rival"] < 1
    assert run.estimator.course.rival is None  # it is not kept beyond pretraining
    assert not same(start, weights_of(run.policy.model))
    said = capsys.readouterr().err
    assert "has learned from 0 of 2 steps" in said
    assert "that of a discriminative critic" in said


def test_its_error_falls_on_what_it_learns_from_and_it_never_sees_held_out_problems(small_model, tmp_path):
    run = trainer(small_model, tmp_path, algorithm(segmentation="fixed", segment_tokens=2), learning_rate=3e-5)
    scripted(run.estimator, lambda view, j: "[5]")
    batch, found = asked(run)
    rival = run.estimator.course.rival
    before = weights_of(rival.critic.model)
    rival.learn(batch, found, {view.problem for view in found.states.views})
    assert same(before, weights_of(rival.critic.model))
    rate = [r for r in found.share_B if math.isfinite(r)]
    constant = judge([0.5] * len(rate), rate).brier_constant
    for _ in range(30):
        rival.learn(batch, found, frozenset())
    assert rival.brier(batch, found) < 0.9 * constant
    assert not same(before, weights_of(rival.critic.model))


def test_a_better_critic_passes_as_soon_as_the_two_are_compared(small_model, tmp_path):
    run = trainer(small_model, tmp_path, algorithm(segmentation="fixed", segment_tokens=2))
    outcome = outcomes_to_come(run)
    scripted(run.estimator, lambda view, j: f"[{outcome.get((view.problem, view.prefix), 5)}]")
    rows = [run.train_step(n).row for n in (1, 2, 3)]
    assert [row["genac/stage"] for row in rows] == [1.0, 1.0, 2.0]
    assert rows[2]["genac/brier"] < rows[2]["genac/brier_rival"]


def test_resume_goes_on_with_the_same_rival_to_the_bit(small_model, tmp_path):
    algo = algorithm(pretrain_steps=9, rival_steps=9, gates="warn")
    whole = trainer(small_model, tmp_path / "a", algo)
    whole.progress = whole.run.open(whole)
    for number in (1, 2):
        whole.train_step(number)
    whole.checkpoint()
    rows = [whole.train_step(n).row for n in (3, 4)]
    again = trainer(small_model, tmp_path / "b", algo, resume=str(tmp_path / "a" / "checkpoints" / "step-000002"))
    again.progress = again.run.open(again)
    assert again.estimator.course.rival.steps == 2
    theirs = [again.train_step(n).row for n in (3, 4)]
    ours, found = whole.estimator.state_dict(), again.estimator.state_dict()
    assert [r["genac/brier_rival"] for r in theirs] == [r["genac/brier_rival"] for r in rows]
    assert found.values == ours.values
    assert sum(name.startswith("rival.optimizer.") for name in ours.tensors) > 2
    assert all(torch.equal(found.tensors[name], value) for name, value in ours.tensors.items())


def test_a_checkpoint_from_before_there_was_one_lets_it_begin_anew(small_model, tmp_path):
    state = trainer(small_model, tmp_path / "a", algorithm(rival_steps=0)).estimator.state_dict()
    assert not any(name.startswith("rival.") for name in state.tensors)
    state.values.pop("rival")
    other = trainer(small_model, tmp_path / "b", algorithm()).estimator
    other.load_state_dict(state)
    assert other.course.rival.steps == 0


def test_several_processes_have_the_rival_of_one(small_model, tmp_path, monkeypatch):
    load_in_turns(monkeypatch)

    def work(world):
        run = trainer(small_model, tmp_path / "unused", algorithm(), world=world)
        scripted(run.estimator, lambda view, j: "[5]")
        rows = [run.train_step(n).row["genac/brier_rival"] for n in (1, 2, 3)]
        return rows, weights_of(run.estimator.course.rival.critic.model)

    rows, weights = work(World())
    for size in (2, 5):
        for theirs, found in together(size, work):
            assert theirs == pytest.approx(rows, abs=1e-5)
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, weights))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"rival_steps": 5, "pretrain_steps": 4}, r"--genac.rival-steps is 5, more than --genac.pretrain-steps \(4\)"),
        ({"rival_steps": -1}, "--genac.rival-steps is -1, it must not be negative"),
    ],
)
def test_a_rival_that_would_never_be_compared_is_refused(given, text):
    with pytest.raises(UserError, match=text):
        Genac(**given)
