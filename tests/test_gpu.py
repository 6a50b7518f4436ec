"""What only a CUDA device can show: bfloat16 by hardware, CUDA graphs, memory as torch counts it, devices that must agree.

Skipped without one. Every test also says in its name what is expected there.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from pathlib import Path

import pytest
import torch

from tests.helpers import random_batch, small_policy
from tests.odd import odd_length
from vantage import tiny
from vantage.config import TrainConfig
from vantage.doctor import diagnose
from vantage.estimators import get_algorithm
from vantage.estimators.base import Setup
from vantage.estimators.rloo import Rloo
from vantage.memory.report import memory_rows
from vantage.models.holding import ModelOptions
from vantage.models.loading import load_policy
from vantage.policy import Policy
from vantage.randomness import Stream, key
from vantage.rollout.engine import Request, Sampling
from vantage.rollout.slots import SlotDecoder
from vantage.rollout.transformers_engine import TransformersEngine
from vantage.trainer import Trainer
from vantage.update import PolicyUpdate

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")
END = 1


def requests(count: int = 12, group: int = 4, new: int | None = None) -> list[Request]:
    prompts = random_batch(groups=count, group=1).prompt_ids
    return [
        Request(p, tuple(key(0, Stream.ROLLOUT, 1, i, j) for j in range(group)), (), new) for i, p in enumerate(prompts)
    ]


def tokens(rollouts) -> list[list[int]]:
    return [r.response_ids for group in rollouts for r in group]


def on_gpu(dtype: torch.dtype = torch.float32, **options) -> Policy:
    policy = small_policy(dtype=dtype)
    return Policy(policy.model.to(CUDA), policy.tokenizer, **options)


def settings(small_model: Path, out: Path, algo: str, **changes) -> TrainConfig:
    given = {
        "model": str(small_model), "out": str(out), "steps": 3, "rollouts_per_step": 16, "rollouts_per_prompt": 2,
        "max_new_tokens": 12, "eval_problems": 8, "checkpoint_every": 0, "learning_rate": 1e-3, "algo": get_algorithm(algo)(),
    }  # fmt: skip
    return TrainConfig(**given | changes)


def test_float64_rollouts_on_the_gpu_are_those_of_the_cpu() -> None:
    policy, gpu = small_policy(), on_gpu(torch.float64)
    for temperature in (0.0, 1.0):
        sampling = Sampling(24, temperature=temperature, stop=("7a",))
        expected = TransformersEngine(policy, (END,)).generate(requests(), sampling)
        for cache in ("dynamic", "static"):
            found = TransformersEngine(gpu, (END,), cache=cache).generate(requests(), sampling)
            assert tokens(found) == tokens(expected)
            for a, b in zip((r for g in found for r in g), (r for g in expected for r in g), strict=True):
                assert a.logp == pytest.approx(b.logp, abs=1e-9)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_graphs_are_recorded_and_replay_what_a_pass_computes(compute, monkeypatch) -> None:
    policy = on_gpu(compute=compute)
    made: list[SlotDecoder] = []
    plain = SlotDecoder.__init__
    monkeypatch.setattr(SlotDecoder, "__init__", lambda self, *args: (plain(self, *args), made.append(self))[0])
    apart = [Request(r.prompt_ids, (k,), (), 60) for r in requests() for k in r.keys]
    engine = TransformersEngine(policy, (), cache="static")
    found = engine.generate(apart, Sampling(60))
    assert engine._static_agrees
    assert made[0].recording
    assert made[0].graphs
    monkeypatch.setattr("vantage.rollout.slots.RECORD_AFTER", 10**9)
    eager = TransformersEngine(policy, (), cache="static").generate(apart, Sampling(60))
    assert not made[1].graphs
    assert tokens(found) == tokens(eager)


def test_rollouts_are_the_same_every_time_and_whatever_is_in_the_batch() -> None:
    policy = on_gpu(compute=torch.bfloat16)
    engine = TransformersEngine(policy, (END,))
    first = engine.generate(requests(), Sampling(20))
    assert tokens(engine.generate(requests(), Sampling(20))) == tokens(first)
    seldom = TransformersEngine(policy, (END,))
    seldom.look_every = 1
    assert tokens(seldom.generate(requests(), Sampling(20))) == tokens(first)


def test_rollouts_and_training_agree_in_bfloat16(small_model) -> None:
    policy = load_policy(str(small_model), CUDA, options=ModelOptions("bf16", trained=True))
    rollouts = [r for g in TransformersEngine(policy, (END,)).generate(requests(), Sampling(12)) for r in g]
    batch = random_batch(groups=12, group=4)
    prompts = [r.prompt_ids for r in requests() for _ in r.keys]
    batch = dataclasses.replace(batch, prompt_ids=prompts, response_ids=[r.response_ids for r in rollouts])
    with torch.no_grad():
        logp_MT = policy.forward(batch).logp_MT.cpu()
    for i, rollout in enumerate(rollouts):
        assert torch.allclose(logp_MT[i, : len(rollout.logp)], torch.tensor(rollout.logp), atol=0.1)


def test_auto_takes_bfloat16_static_cache_and_a_fused_optimizer(small_model, tmp_path) -> None:
    trainer = Trainer(settings(small_model, tmp_path / "run", "rloo"), reward_funcs=odd_length)
    assert trainer.policy.device.type == "cuda"
    assert trainer.policy.compute == torch.bfloat16
    assert {p.dtype for p in trainer.policy.model.parameters()} == {torch.float32}
    assert trainer.update.optimizer.defaults["fused"]
    trainer.train_step(1)
    assert trainer.engine._static_agrees
    assert trainer.update.budget > 4096  # from free memory


def test_gradients_on_the_gpu_are_those_of_the_cpu() -> None:
    batch, grads = random_batch(), []
    for policy in (small_policy(), on_gpu(torch.float64)):
        config = dataclasses.replace(_resolved(), tokens_per_microbatch=60)
        PolicyUpdate(policy, Rloo().build(None), config).gradient(batch)
        grads.append(torch.cat([p.grad.flatten().cpu() for p in policy.model.parameters() if p.grad is not None]))
    assert torch.allclose(*grads, atol=1e-10)


def _resolved() -> TrainConfig:
    from vantage.config import resolve

    config = TrainConfig(algo=Rloo(), rollouts_per_step=12, rollouts_per_prompt=2, learning_rate=1e-3)
    return resolve(config, max_new_tokens=20, stop=(), reward_range=(0.0, 1.0))


@pytest.mark.parametrize(
    "algo", ["poise", "poise_token", "rloo", "grpo", "dr_grpo", "dapo", "reinforce", "ppo", "vineppo", "vimpo", "genac"]
)
def test_every_algorithm_trains_on_the_gpu_and_resumes(algo, tmp_path) -> None:
    """Nothing may assume that tensors live on the CPU."""
    steps = 2 if algo == "genac" else 3
    config = TrainConfig(
        algo=get_algorithm(algo)(), out=str(tmp_path / "run"), steps=steps, rollouts_per_step=16, eval_problems=8,
        checkpoint_every=1,
    )  # fmt: skip
    Trainer(dataclasses.replace(config, steps=steps - 1)).train()
    summary = Trainer(dataclasses.replace(config, resume="auto")).train()
    assert summary is not None
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == steps + 1


@pytest.mark.parametrize("changes", [{"lora_rank": 4}, {"gradient_checkpointing": True}, {"optimizer": "adamw-8bit"}])
def test_ways_to_save_memory_train_on_the_gpu(changes, tmp_path) -> None:
    for name, package in (("lora_rank", "peft"), ("optimizer", "torchao")):
        if name in changes:
            pytest.importorskip(package)
    config = TrainConfig(
        algo=Rloo(), out=str(tmp_path / "run"), steps=2, rollouts_per_step=16, rollouts_per_prompt=2, eval_problems=0, **changes
    )  # fmt: skip
    trainer = Trainer(config)
    rows = [trainer.train_step(n).row for n in (1, 2)]
    assert all(math.isfinite(row["policy/grad_norm"]) for row in rows)


def test_memory_that_runs_out_halves_the_micro_batch() -> None:
    """A real one: the process may have little of the device."""
    torch.cuda.empty_cache()
    model, tokenizer = tiny.fresh(0, vocab_size=60_000, hidden_size=256)
    policy = Policy(model.to(CUDA), tokenizer, chunk_tokens=10**6)
    config = dataclasses.replace(_resolved(), tokens_per_microbatch=10**6)
    update = PolicyUpdate(policy, Rloo().build(None), config)
    total = torch.cuda.get_device_properties(CUDA).total_memory
    batch = random_batch(groups=200, group=2)
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 1.5e9) / total)
    try:
        with pytest.warns(UserWarning, match="--tokens-per-microbatch"):
            update.run(batch)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert update.budget < 5000


def test_the_estimate_of_memory_is_within_15_percent_of_what_torch_counts(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    check = importlib.import_module("memory_check")
    found = check.check(list(check.QUICK), "cuda")
    for name, case in found.items():
        for phase, ratio in case["ratio"].items():
            assert ratio == pytest.approx(1, abs=check.BAR), f"{name}, {phase}: {case}"


def test_the_doctor_names_the_gpu_and_says_whether_a_model_fits() -> None:
    rows = {row.name: row for row in diagnose()}
    assert rows["GPU 0"].status == "ok"
    assert rows["attention"].status == "ok"
    assert "takes cuda" in rows["engine, device"].detail
    *_, fits = memory_rows(TrainConfig(algo=Rloo(), rollouts_per_prompt=2))
    assert fits.status == "ok"
    assert "free on cuda" in fits.detail


def test_a_probes_features_are_those_of_the_cpu() -> None:
    batch, found = random_batch(), []
    for policy in (small_policy(), on_gpu(torch.float64)):
        estimator = get_algorithm("poise")().build(Setup(3, 32, 2, (0.0, 1.0)))
        with torch.no_grad():
            found.append(estimator.read(policy.forward(batch, layers=estimator.needs.hidden_layers))["features"])
    assert found[1].device.type == "cpu"
    assert torch.allclose(*found, atol=1e-5)
