"""The reference: a copy, the same model without its adapters, or the policy of some steps ago."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch

from tests.helpers import SMALL
from vantage import TrainConfig, Trainer, UserError, Vimpo, tiny
from vantage.batch import Batch
from vantage.models.reference import AdapterOff, has_adapters, make_reference, reference_digest, refresh
from vantage.policy import Policy


def batch() -> Batch:
    rewards = torch.tensor([1.0, 0.0], dtype=torch.float64)
    return Batch(
        step=1, prompt_ids=[[5, 6, 7]] * 2, response_ids=[[8, 9, 10, 11], [12, 13]], group_B=torch.zeros(2, dtype=torch.long),
        outcome_B=rewards, reward_B=rewards, scorable_B=torch.ones(2, dtype=torch.bool), domains=["d"] * 2,
    )  # fmt: skip


def lora_policy(seed: int = 0) -> tuple[Policy, Policy]:
    """A policy with an adapter that already does something, and its base."""
    model, tokenizer = tiny.fresh(seed, **SMALL)
    base = Policy(model, tokenizer)
    other, _ = tiny.fresh(seed, **SMALL)
    other.load_state_dict(model.state_dict())
    adapted = peft.get_peft_model(
        other, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    return Policy(adapted, tokenizer), base


def test_the_reference_of_a_policy_with_adapters_is_its_base_without_a_copy():
    policy, base = lora_policy()
    reference = make_reference(policy, None)
    assert isinstance(reference, AdapterOff)
    assert has_adapters(policy)
    assert not has_adapters(base)
    assert reference.model is policy.model
    with torch.no_grad():
        found = policy.forward(batch(), reference=reference, kl_grad=False)
        ours, alone = policy.forward(batch()), base.forward(batch())
    assert torch.allclose(found.reference_logp_MT, alone.logp_MT, atol=1e-6)
    assert torch.equal(found.logp_MT, ours.logp_MT)
    assert float((ours.logp_MT - alone.logp_MT).abs().max()) > 1e-3  # or the adapter does nothing and nothing is shown
    assert float(found.kl_MT[found.mask_MT].min()) > 0


def test_adapters_are_on_again_after_an_error_inside():
    policy, base = lora_policy()
    reference = make_reference(policy, None)
    with pytest.raises(RuntimeError), reference.active():
        raise RuntimeError
    with torch.no_grad():
        assert float((policy.forward(batch()).logp_MT - base.forward(batch()).logp_MT).abs().max()) > 1e-3


def test_the_digest_of_a_base_does_not_move_with_its_adapters():
    policy, _ = lora_policy()
    reference = make_reference(policy, None)
    before = reference_digest(reference)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_" in name:
                parameter.add_(1.0)
    assert reference_digest(reference) == before


def test_a_copy_stays_when_the_policy_moves_until_it_is_refreshed():
    model, tokenizer = tiny.fresh(0, **SMALL)
    policy = Policy(model, tokenizer)
    reference = make_reference(policy, None)
    before = reference_digest(reference)
    with torch.no_grad():
        next(policy.model.parameters()).add_(0.1)
    assert reference_digest(reference) == before
    assert not any(p.requires_grad for p in reference.model.parameters())
    refresh(reference, policy)
    assert reference_digest(reference) != before
    with torch.no_grad():
        found = policy.forward(batch(), reference=reference, kl_grad=False)
    assert float(found.kl_MT.abs().max()) < 1e-6


def odd(completions, **kwargs):
    return [float(len(c) % 2) for c in completions]


def trainer(model: Path, out: Path, **changes) -> Trainer:
    settings = {
        "model": str(model), "out": str(out), "steps": 6, "rollouts_per_step": 8, "max_new_tokens": 10, "eval_problems": 0,
        "checkpoint_every": 1, "keep_checkpoints": 0, "samples_every": 0, "learning_rate": 1e-2, "lr_schedule": "constant",
        "algo": Vimpo(beta=0.1),
    }  # fmt: skip
    return Trainer(TrainConfig(**(settings | changes)), reward_funcs=odd)


def rows(out: Path) -> list[dict]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "throughput/", "mem/"))} for row in found]


@pytest.mark.parametrize("every", [0, 2])
def test_a_resumed_run_compares_with_the_reference_that_the_whole_one_has(every, small_model, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer(small_model, whole, reference_refresh=every).train()
    trainer(small_model, parts, reference_refresh=every, steps=3).train()
    resumed = trainer(small_model, parts, reference_refresh=every, resume="auto")
    resumed.train()
    assert rows(parts) == rows(whole)
    kl = {row["step"]: row["policy/kl_ref"] for row in rows(whole)[1:]}
    assert kl[1] == pytest.approx(0, abs=1e-6)
    assert kl[4] > 1e-4
    # steps 3 and 5 begin with a refreshed reference, that is with the policy itself
    assert (kl[3] < 1e-6, kl[5] < 1e-6) == ((True, True) if every else (False, False))
    assert (parts / "checkpoints" / "step-000003" / "reference.safetensors").exists() == bool(every)


def test_a_base_can_not_be_refreshed(small_model, tmp_path, monkeypatch):
    from vantage import trainer as module

    monkeypatch.setattr(module, "load_policy", lambda *_, **__: lora_policy()[0])
    with pytest.raises(UserError, match="--reference-refresh"):
        trainer(small_model, tmp_path / "run", reference_refresh=2)


def test_a_step_with_adapters_moves_the_adapters_alone(small_model, tmp_path, monkeypatch):
    from vantage import trainer as module

    policy, base = lora_policy()
    monkeypatch.setattr(module, "load_policy", lambda *_, **__: policy)
    adapters = {n: p.detach().clone() for n, p in policy.model.named_parameters() if p.requires_grad}
    frozen = {n: p.detach().clone() for n, p in policy.model.named_parameters() if not p.requires_grad}
    made = trainer(small_model, tmp_path / "run")
    row = made.train_step(1).row
    assert row["policy/kl_ref"] > 1e-4  # the adapter was not the identity: the reference is the base
    now = dict(policy.model.named_parameters())
    assert any(not torch.equal(now[n], p) for n, p in adapters.items())
    assert all(torch.equal(now[n], p) for n, p in frozen.items())
    with torch.no_grad():
        found = policy.forward(batch(), reference=made.reference, kl_grad=False)
    assert torch.allclose(found.reference_logp_MT, base.forward(batch()).logp_MT.detach(), atol=1e-6)
