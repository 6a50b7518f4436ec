"""A step's rollouts: dynamic sampling refills, shaping changes pay and nothing else; budgets; the reference of the KL."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.odd import odd_length
from vantage import Dapo, Grpo, Poise, Rloo, TrainConfig, Trainer
from vantage.collect import refill
from vantage.errors import UserError
from vantage.rundir import fingerprint
from vantage.trainer import Progress


def settings(model: Path, out: Path, **changes) -> TrainConfig:
    base = {
        "model": str(model), "out": str(out), "steps": 3, "rollouts_per_step": 24, "rollouts_per_prompt": 3,
        "max_new_tokens": 10, "eval_every": 0, "eval_problems": 0, "samples_every": 0, "checkpoint_every": 0,
        "learning_rate": 1e-2, "algo": Dapo(),
    }  # fmt: skip
    return TrainConfig(**(base | changes))


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("wanted", "kept", "drawn", "expected"),
    [(8, 0, 0, 8), (8, 0, 8, 8), (8, 4, 8, 8), (8, 6, 8, 3), (8, 7, 8, 2), (8, 1, 16, 8), (100, 90, 120, 14)],
)
def test_the_next_round_is_as_large_as_the_missing_groups_need(wanted, kept, drawn, expected):
    assert refill(wanted, kept, drawn) == expected


def test_dynamic_sampling_fills_the_step_with_groups_that_differ(small_model, tmp_path):
    trainer = Trainer(settings(small_model, tmp_path / "run"), reward_funcs=odd_length)
    found = trainer.collector(1, trainer.stream, 0)
    assert found.groups == 8
    assert found.batch.size == 24
    outcome = found.batch.outcome_B.reshape(8, 3)
    assert (outcome.amax(1) > outcome.amin(1)).all()
    plain = Trainer(settings(small_model, tmp_path / "plain", group_filter="none"), reward_funcs=odd_length)
    first = plain.collector(1, plain.stream, 0)
    equal = first.batch.outcome_B.reshape(8, 3)
    assert (equal.amax(1) == equal.amin(1)).any()  # there was something to throw away
    assert found.consumed > first.consumed == 8
    # The first round is the same with and without the filter; its mixed groups are the first ones that stay.
    mixed = [g for g in range(8) if equal[g].amax() > equal[g].amin()]
    assert torch.unique(found.batch.group_B).tolist()[: len(mixed)] == mixed


def test_what_is_thrown_away_is_counted(small_model, tmp_path):
    trainer = Trainer(settings(small_model, tmp_path / "run"), reward_funcs=odd_length)
    found = trainer.collector(1, trainer.stream, 0)
    metrics, kept = found.metrics, float(found.batch.length_B.sum())
    assert metrics["tokens/filtered"] == metrics["tokens/generated"] - kept > 0
    assert metrics["groups/filtered"] == pytest.approx(1 - 8 / found.consumed)
    assert metrics["groups/rounds"] >= 2
    everything = settings(small_model, tmp_path / "all", group_filter="none", rollouts_per_step=3 * found.consumed)
    whole = Trainer(everything, reward_funcs=odd_length)
    # reward/mean is that of all prompts that were drawn, not of the groups that stayed
    again = whole.collector(1, whole.stream, 0)
    assert metrics["reward/mean"] == pytest.approx(again.metrics["reward/mean"])
    assert metrics["tokens/generated"] == again.metrics["tokens/generated"]


def test_rounds_are_capped_and_a_short_step_is_trained_on(small_model, tmp_path):
    config = settings(small_model, tmp_path / "run", filter_rounds=1, steps=1)
    trainer = Trainer(config, reward_funcs=odd_length)
    trainer.train()
    row = rows(tmp_path / "run")[1]
    assert row["groups/rounds"] == 1
    assert 0 < row["groups/filtered"] < 1
    assert 0 < row["tokens/trained"] == row["tokens/generated"] - row["tokens/filtered"]
    assert trainer.progress.prompts == 8


def test_a_step_that_stays_empty_is_skipped_and_the_stream_goes_on(small_model, tmp_path):
    def never(completions, **kwargs):
        return [0.0] * len(completions)

    trainer = Trainer(settings(small_model, tmp_path / "run", filter_rounds=2, steps=2), reward_funcs=never)
    before = {k: v.clone() for k, v in trainer.policy.model.state_dict().items()}
    trainer.train()
    for row in rows(tmp_path / "run")[1:]:
        assert row["groups/filtered"] == 1.0
        assert row["policy/skipped_updates"] == 1.0
        assert row["tokens/trained"] == 0
        assert row["tokens/filtered"] == row["tokens/generated"] > 0
    assert trainer.progress.prompts == 2 * 2 * 8
    assert all(torch.equal(before[k], v) for k, v in trainer.policy.model.state_dict().items())


def test_overlong_shaping_changes_what_is_paid_and_never_the_outcome(small_model, tmp_path):
    config = settings(small_model, tmp_path / "run", algo=Rloo(), overlong_buffer=4, overlong_penalty=0.5)
    trainer = Trainer(config, reward_funcs=odd_length)
    found = trainer.collector(1, trainer.stream, 0)
    batch = found.batch
    penalty = 0.5 * ((batch.length_B.double() - 6) / 4).clamp(0, 1)
    assert penalty.max() == 0.5
    assert len(penalty.unique()) > 2
    torch.testing.assert_close(batch.reward_B, batch.outcome_B - penalty)
    assert set(batch.outcome_B.tolist()) == {0.0, 1.0}
    assert found.metrics["reward/mean"] == pytest.approx(batch.outcome_B.mean().item())
    assert found.metrics["reward/overlong_penalty"] == pytest.approx(penalty.mean().item())
    estimate = trainer.update.run(batch).estimate
    pairs = batch.outcome_B.reshape(8, 3)
    siblings = (pairs.sum(1, keepdim=True) - pairs) / 2  # the value is of raw outcomes
    torch.testing.assert_close(estimate.value_BT[:, 0], siblings.flatten())


def test_truncated_responses_are_marked(small_model, tmp_path):
    trainer = Trainer(settings(small_model, tmp_path / "run", algo=Grpo(), max_new_tokens=3), reward_funcs=odd_length)
    found = trainer.collector(1, trainer.stream, 0)
    assert found.batch.truncated_B.tolist() == [r.finish_reason == "length" for r in found.rollouts]
    assert 0 < found.batch.truncated_B.double().mean() <= 1


def test_a_budget_of_tokens_ends_the_run_and_leads_the_learning_rate(small_model, tmp_path):
    config = settings(small_model, tmp_path / "run", algo=Rloo(), steps=1000, budget_tokens=1000, eval_problems=4)
    trainer = Trainer(config, reward_funcs=odd_length)
    trainer.train()
    log = rows(tmp_path / "run")
    total = [r["tokens/total"] for r in log[1:]]
    assert total[-2] < 1000 <= total[-1]
    assert total == [sum(r["tokens/generated"] for r in log[1 : k + 2]) for k in range(len(total))]
    assert "eval/accuracy" in log[-1]
    assert trainer.update.spent == total[-2] / 1000
    rate = trainer.update.optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(1e-2 * (1 - total[-2] / 1000))


def test_a_budget_of_seconds_ends_the_run(small_model, tmp_path):
    config = settings(small_model, tmp_path / "run", algo=Rloo(), steps=10**6, budget_seconds=0.5)
    trainer = Trainer(config, reward_funcs=odd_length)
    trainer.train()
    total = [r["time/total"] for r in rows(tmp_path / "run")[1:]]
    assert total == sorted(total)
    assert total[-1] >= 0.5
    assert len(total) == 1 or total[-2] < 0.5


def test_progress_is_the_largest_share_of_any_budget():
    config = TrainConfig(steps=10, budget_tokens=100, budget_seconds=50.0)
    assert Progress(step=2, tokens=30, seconds=10).share(config) == 0.3
    assert Progress(step=2, tokens=30, seconds=10).spent(config) == 0.3
    assert Progress(step=5, tokens=30, seconds=10).share(config) == 0.5
    assert Progress(step=5, tokens=300).share(config) == 1.0
    assert Progress(step=5, tokens=300).spent(TrainConfig(steps=10)) == 0.0


def test_dynamic_sampling_resumes_at_the_same_place_in_the_stream(small_model, tmp_path):
    whole = Trainer(settings(small_model, tmp_path / "whole", steps=4, lr_schedule="constant"), reward_funcs=odd_length)
    whole.train()
    part = settings(small_model, tmp_path / "part", steps=2, lr_schedule="constant", resume="auto")
    Trainer(part, reward_funcs=odd_length).train()
    resumed = Trainer(replace(part, steps=4), reward_funcs=odd_length)
    resumed.train()
    assert resumed.progress.prompts == whole.progress.prompts > 4 * 8
    assert resumed.progress.tokens == whole.progress.tokens
    weights = whole.policy.model.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in resumed.policy.model.state_dict().items())


# --- the reference --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["k3", "exact"])
def test_the_reference_stays_the_policy_of_the_start_through_a_resume(estimator, small_model, tmp_path):
    shared = {
        "algo": Poise(), "rollouts_per_prompt": 2, "kl_coef": 0.1, "kl_estimator": estimator, "lr_schedule": "constant",
    }  # fmt: skip
    whole = Trainer(settings(small_model, tmp_path / "whole", steps=4, **shared), reward_funcs=odd_length)
    start = {k: v.clone() for k, v in whole.policy.model.state_dict().items()}
    whole.train()
    log = rows(tmp_path / "whole")[1:]
    assert log[0]["policy/kl_ref"] == pytest.approx(0, abs=1e-6)
    assert log[-1]["policy/kl_ref"] > 1e-4
    part = settings(small_model, tmp_path / "part", steps=2, resume="auto", **shared)
    Trainer(part, reward_funcs=odd_length).train()
    resumed = Trainer(replace(part, steps=4), reward_funcs=odd_length)
    resumed.train()
    for trainer in (whole, resumed):
        assert all(torch.equal(start[k], v) for k, v in trainer.reference.model.state_dict().items())
    assert rows(tmp_path / "part")[-1]["policy/kl_ref"] == log[-1]["policy/kl_ref"]
    weights = whole.policy.model.state_dict()
    assert all(torch.equal(weights[k], v) for k, v in resumed.policy.model.state_dict().items())


def test_a_reference_that_has_changed_is_refused_on_resume(small_model, tmp_path, monkeypatch):
    config = settings(small_model, tmp_path / "run", algo=Rloo(), kl_coef=0.1, steps=2, resume="auto")
    Trainer(config, reward_funcs=odd_length).train()
    again = Trainer(replace(config, steps=3), reward_funcs=odd_length)
    with torch.no_grad():
        next(again.reference.model.parameters()).mul_(1.5)
    with pytest.raises(UserError, match="made with another reference"):
        again.train()
    assert "reference" in fingerprint(again)


def test_another_model_as_reference(small_model, tmp_path):
    config = settings(small_model, tmp_path / "run", algo=Rloo(), kl_coef=0.1, reference="tiny", steps=1)
    trainer = Trainer(config, reward_funcs=odd_length)
    assert trainer.reference.hidden_size == 128 != trainer.policy.hidden_size
    trainer.train()
    assert rows(tmp_path / "run")[-1]["policy/kl_ref"] > 0.1
    assert not any(p.requires_grad for p in trainer.reference.model.parameters())


def test_a_strong_kl_holds_the_policy_to_its_start(small_model, tmp_path):
    final = {}
    for weight in (0.0001, 10.0):
        config = settings(
            small_model, tmp_path / str(weight), algo=Rloo(), kl_coef=weight, steps=12, rollouts_per_step=48,
            learning_rate=1e-3, lr_schedule="constant",
        )  # fmt: skip
        Trainer(config, reward_funcs=odd_length).train()
        final[weight] = rows(tmp_path / str(weight))[-1]["policy/kl_ref"]
    assert final[10.0] < 0.3 * final[0.0001]
