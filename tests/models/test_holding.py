"""How a model is held: arithmetic in bfloat16 over float32 weights, recomputed blocks, adapters and what is saved of them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers import SMALL
from vantage import Poise, TrainConfig, Trainer, UserError, tiny
from vantage.batch import Batch
from vantage.cli import main
from vantage.estimators.vimpo import Vimpo
from vantage.models.holding import Lora, ModelOptions, with_adapters
from vantage.models.loading import load_model, load_policy, model_path
from vantage.policy import Policy
from vantage.rollout.engine import Request, Sampling
from vantage.rollout.transformers_engine import TransformersEngine

CPU = torch.device("cpu")


def batch() -> Batch:
    rewards = torch.tensor([1.0, 0.0], dtype=torch.float64)
    return Batch(
        step=1, prompt_ids=[[5, 6, 7]] * 2, response_ids=[[8, 9, 10, 11], [12, 13]], group_B=torch.zeros(2, dtype=torch.long),
        outcome_B=rewards, reward_B=rewards, scorable_B=torch.ones(2, dtype=torch.bool), domains=["d"] * 2,
    )  # fmt: skip


def gradient(policy: Policy, layers=()) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    policy.model.zero_grad(set_to_none=True)
    forward = policy.forward(batch(), layers=layers)
    forward.logp_MT.sum().backward()
    parts = [p.grad.reshape(-1) for p in policy.model.parameters() if p.grad is not None]
    return torch.cat(parts), forward.hidden


def policy_of(small_model: Path, **options) -> Policy:
    return load_policy(str(small_model), CPU, options=ModelOptions(trained=True, **options))


# --- number types ---------------------------------------------------------------------------------------------------


def test_bfloat16_arithmetic_keeps_float32_weights_and_log_probs_and_is_close(small_model):
    exact, fast = policy_of(small_model), policy_of(small_model, precision="bf16")
    assert {p.dtype for p in fast.model.parameters()} == {torch.float32}
    ours, theirs = fast.forward(batch()), exact.forward(batch())
    assert ours.logp_MT.dtype == torch.float32
    difference = float((ours.logp_MT - theirs.logp_MT).detach().abs().max())
    assert 1e-6 < difference < 0.05  # another arithmetic, and near
    one, _ = gradient(fast)
    two, _ = gradient(exact)
    assert one.dtype == torch.float32
    assert float(torch.nn.functional.cosine_similarity(one, two, dim=0)) > 0.999


def test_a_step_of_1e_6_moves_weights_under_bfloat16_arithmetic(small_model):
    policy = policy_of(small_model, precision="bf16")
    before = [p.detach().clone() for p in policy.model.parameters()]
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-6, weight_decay=0.0)
    policy.forward(batch()).logp_MT.sum().backward()
    optimizer.step()
    moved = [float((p - b).detach().abs().max()) for p, b in zip(policy.model.parameters(), before)]
    assert max(moved) == pytest.approx(1e-6, rel=0.1)


def test_generation_and_training_see_the_same_log_probs_in_bfloat16(small_model):
    policy = policy_of(small_model, precision="bf16")
    engine = TransformersEngine(policy, (1,))
    rollouts = engine.generate([Request([5, 6, 7], (1, 2))], Sampling(max_new_tokens=8))[0]
    made = Batch(
        step=1, prompt_ids=[[5, 6, 7]] * 2, response_ids=[r.response_ids for r in rollouts],
        group_B=torch.zeros(2, dtype=torch.long), outcome_B=torch.zeros(2), reward_B=torch.zeros(2),
        scorable_B=torch.ones(2, dtype=torch.bool), domains=["d"] * 2,
    )  # fmt: skip
    with torch.no_grad():
        logp_MT = policy.forward(made).logp_MT
    for i, rollout in enumerate(rollouts):
        assert torch.allclose(logp_MT[i, : len(rollout.logp)], torch.tensor(rollout.logp), atol=0.05)


def test_what_is_only_run_has_weights_in_the_type_of_its_arithmetic(small_model):
    frozen = load_policy(str(small_model), CPU, options=ModelOptions(precision="bf16"))
    assert {p.dtype for p in frozen.model.parameters()} == {torch.bfloat16}
    assert ModelOptions().weight_type(CPU) == torch.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_reference_of_a_policy_is_equal_to_it_at_the_start(precision, small_model, tmp_path):
    config = TrainConfig(
        model=str(small_model), out=str(tmp_path / "run"), steps=1, rollouts_per_step=8, max_new_tokens=8, eval_problems=0,
        algo=Vimpo(), precision=precision,
    )  # fmt: skip
    row = Trainer(config, reward_funcs=odd).train_step(1).row
    assert row["policy/kl_ref"] == pytest.approx(0, abs=1e-7)


def test_an_attention_that_is_not_there_is_named(small_model):
    with pytest.raises(UserError, match="flash_attention_2"):
        load_model(str(small_model), attention="flash_attention_2")
    network, _ = load_model(str(small_model), attention="eager")
    assert network.config._attn_implementation == "eager"


# --- recomputation --------------------------------------------------------------------------------------------------


def test_recomputed_blocks_give_the_same_gradient_and_states_are_read_once(small_model):
    plain, again = policy_of(small_model), policy_of(small_model, gradient_checkpointing=True)
    runs = {"plain": 0, "again": 0}

    def counted(name):
        def hook(module, args):
            runs[name] += 1

        return hook

    plain.head.blocks[1].mlp.register_forward_pre_hook(counted("plain"))
    again.head.blocks[1].mlp.register_forward_pre_hook(counted("again"))
    one, states = gradient(plain, (0, 1, 3))
    two, others = gradient(again, (0, 1, 3))
    assert runs == {"plain": 1, "again": 2}
    assert torch.equal(one, two)
    assert all(torch.equal(states[k], others[k]) for k in (0, 1, 3))
    with torch.no_grad():
        again.forward(batch())
    assert runs["again"] == 3
    assert not any(module.training for module in again.model.modules())
    assert copy.deepcopy(again.model).model.layers[0].forward.__self__ is not again.head.blocks[0]


# --- adapters -------------------------------------------------------------------------------------------------------


def odd(completions, **kwargs):
    return [float(len(c) % 2) for c in completions]


def settings(model: Path, out: Path, **changes) -> TrainConfig:
    base = {
        "model": str(model), "out": str(out), "steps": 4, "rollouts_per_step": 8, "max_new_tokens": 10, "eval_problems": 4,
        "checkpoint_every": 1, "keep_checkpoints": 0, "samples_every": 0, "learning_rate": 1e-2, "lr_schedule": "constant",
        "lora_rank": 4, "algo": Poise(bootstrap=0),
    }  # fmt: skip
    return TrainConfig(**(base | changes))


def rows(out: Path) -> list[dict]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "throughput/", "mem/"))} for row in found]


def test_adapters_begin_as_no_change_and_are_all_that_is_trained(small_model):
    plain, adapted = policy_of(small_model), policy_of(small_model, lora=Lora(4, 8.0, ("all-linear",)))
    with torch.no_grad():
        assert torch.equal(plain.forward(batch()).logp_MT, adapted.forward(batch()).logp_MT)
    trained = {name for name, p in adapted.model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    assert not any("lm_head" in name or "embed" in name for name in trained)
    assert sum(".lora_A" in name for name in trained) == 7 * 3  # seven projections in each of three blocks


def test_a_run_with_adapters_leaves_them_and_a_merged_model_that_agree(small_model, tmp_path):
    trainer = Trainer(settings(small_model, tmp_path / "run"), reward_funcs=odd)
    trainer.train()
    out = tmp_path / "run"
    merged = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    apart = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(small_model), out / "adapter")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        ours, whole, wrapped, before = (m(input_ids=ids).logits for m in (trainer.policy.model, merged, apart, base))
    assert torch.allclose(ours, whole, atol=1e-4)
    assert torch.allclose(ours, wrapped, atol=1e-5)
    assert float((ours - before).abs().max()) > 1e-2
    assert main(["eval", str(out), "--task", "sums", "--problems", "3", "--k", "1", "--max-new-tokens", "4"]) == 0
    assert not (out / "checkpoints" / "step-000004" / "model" / "model.safetensors").exists()
    network, _ = load_model(str(out / "adapter")) if (out / "adapter" / "tokenizer.json").exists() else (merged, None)
    with torch.no_grad():
        assert torch.allclose(network(input_ids=ids).logits, ours, atol=1e-4)


def test_a_resumed_run_with_adapters_is_the_whole_one(small_model, tmp_path):
    Trainer(settings(small_model, tmp_path / "whole", eval_problems=0), reward_funcs=odd).train()
    Trainer(settings(small_model, tmp_path / "parts", steps=2, eval_problems=0), reward_funcs=odd).train()
    Trainer(settings(small_model, tmp_path / "parts", resume="auto", eval_problems=0), reward_funcs=odd).train()
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    first, second = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "parts"))
    assert first.read_bytes() == second.read_bytes()


def test_adapters_do_not_go_on_over_another_base(small_model, tmp_path):
    Trainer(settings(small_model, tmp_path / "run", steps=1), reward_funcs=odd).train()
    other, tokenizer = tiny.fresh(7, **SMALL)
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    changed = settings(
        tmp_path / "other", tmp_path / "branch", resume=str(tmp_path / "run" / "checkpoints" / "step-000001")
    )
    with pytest.raises(UserError, match="base model"):
        Trainer(changed, reward_funcs=odd).train()


def test_a_checkpoint_of_adapters_can_be_evaluated(small_model, tmp_path):
    out = tmp_path / "run"
    Trainer(settings(small_model, out, steps=1), reward_funcs=odd).train()
    folder = out / "checkpoints" / "step-000001" / "model"
    network, tokenizer = load_model(str(folder))
    merged = AutoModelForCausalLM.from_pretrained(out / "model", dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        assert torch.allclose(network(input_ids=ids).logits, merged(input_ids=ids).logits, atol=1e-5)
    assert tokenizer.get_vocab() == tiny.tokenizer().get_vocab()


def test_targets_that_are_not_there_are_named(small_model):
    network, _ = load_model(str(small_model))
    with pytest.raises(UserError, match=r"--lora.targets q_prj"):
        with_adapters(network, Lora(4, 8.0, ("q_prj",)))


def test_without_peft_the_command_that_installs_it_is_named(small_model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'vantage-rl\[peft\]'"):
        with_adapters(object(), Lora(4, 8.0, ("all-linear",)))


def test_adapters_take_ten_times_the_learning_rate_unless_told():
    from vantage.config import default_rate

    assert default_rate(TrainConfig(lora_rank=8)) == pytest.approx(10 * default_rate(TrainConfig()))
    assert default_rate(TrainConfig(model="a/b", lora_rank=8)) == pytest.approx(1e-5)


def test_what_began_as_the_embedded_policy_keeps_its_learning_rate(tmp_path):
    from vantage.config import default_rate

    (tmp_path / "config.yaml").write_text("model: tiny:tools\n")
    (tmp_path / "metrics.jsonl").touch()
    assert default_rate(TrainConfig(model=str(tmp_path))) == default_rate(TrainConfig())
    (tmp_path / "config.yaml").write_text("model: a/b\n")
    assert default_rate(TrainConfig(model=str(tmp_path))) == default_rate(TrainConfig(model="a/b"))


def test_a_misspelt_run_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    assert model_path("runs/frist") == "runs/frist"  # a folder without runs says nothing about ids of the Hub
    (tmp_path / "runs" / "first" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"--model runs/frist: runs has no such run; did you mean 'runs/first'\?"):
        model_path("runs/frist")
