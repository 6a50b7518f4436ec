"""The memory estimate: each part by hand, the trace on small computations, and the whole against what a step really takes."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from vantage import memory, tiny
from vantage.config import TrainConfig, resolve
from vantage.errors import UserError
from vantage.estimators.genac import Genac
from vantage.estimators.grpo import Grpo
from vantage.estimators.ppo import Ppo
from vantage.estimators.vimpo import Vimpo
from vantage.memory import Estimate, Estimator, Settings, estimate, make_fit
from vantage.memory import report as memory_report
from vantage.memory.trace import peak_of
from vantage.models.holding import Lora

SETTINGS = Settings(prompt_tokens=6, new_tokens=10, microbatch_tokens=64, generation_rows=8, rollouts_per_prompt=2)
FLAGS = frozenset({"tokens_per_microbatch", "generation_batch"})


def shape(**changes: Any) -> Any:
    """A Qwen3 configuration that one can reckon with."""
    settings = {
        "vocab_size": 50, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 4,
    }  # fmt: skip
    return tiny.config(**settings | changes)


def parts(**bytes_: int) -> Estimate:
    return Estimate(**{field.name: bytes_.get(field.name, 0) for field in dataclasses.fields(Estimate)})


def test_weights_moments_and_cache_by_hand() -> None:
    assert memory.parameter_bytes(1000, "float32") == 4000
    assert memory.parameter_bytes(1000, "bfloat16") == 2000
    assert memory.optimizer_bytes(1000, "adamw") == 8000
    assert memory.optimizer_bytes(1000, "adamw-8bit") == 2000
    assert memory.optimizer_work_bytes(1000) == 4000
    assert memory.optimizer_work_bytes(1000, on_cpu=False) == memory.optimizer_work_bytes(1000, "adamw-8bit") == 0
    # Qwen3-4B: 36 layers × 8 heads × 128 × 2 (keys, values) × 2 bytes = 147,456 bytes a token
    assert memory.cache_bytes(36, 8, 128, 1, "bfloat16") == 147_456
    assert memory.cache_bytes(36, 8, 128, 10, "float32") == 2_949_120


def test_the_peak_is_the_largest_phase() -> None:
    found = parts(
        weights=10, gradients=10, optimizer=20, reference=3, critic=4, activations=7, optimizer_work=9, rollout=2, saving=15
    )  # fmt: skip
    assert found.resident == 37
    assert found.phases == {"rollout": 39, "update": 54, "optimizer step": 56, "checkpoint": 52}
    assert found.peak == 56


def test_a_checkpoint_copies_the_moments_where_the_model_lives_on_the_cpu() -> None:
    count = estimate(shape(), SETTINGS).parameters
    assert estimate(shape(), SETTINGS).saving == 0
    assert estimate(shape(), dataclasses.replace(SETTINGS, on_cpu=True)).saving == 8 * count


def test_the_trace_counts_what_lives_at_the_same_time() -> None:
    def work() -> None:
        a = torch.empty(10, device="meta")  # 40
        b = a * 2  # 80
        del a
        c = b + b  # 80
        view = c[:5]  # nothing
        d = torch.cat([b, c])  # 160
        del b, c, view, d
        torch.empty(30, device="meta")  # 120

    assert peak_of(work) == 160


def test_the_trace_leaves_out_what_was_there_before() -> None:
    weight = torch.empty(100, device="meta")
    assert peak_of(lambda: weight.view(10, 10)[0] * 2, [weight]) == 40
    assert peak_of(lambda: weight.add_(1), [weight]) == 0


def mlp_bytes(rows: int, again: bool) -> int:
    """Forward and backward of y = W₂ relu(W₁ x), 4 → 100 → 1, with gradients that are there."""
    first, second = torch.empty(100, 4, device="meta"), torch.empty(1, 100, device="meta")
    for weight in (first, second):
        weight.requires_grad_()
        weight.grad = torch.empty_like(weight)
    x = torch.empty(rows, 4, device="meta")

    def hidden(x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ first.T)

    def work() -> None:
        h = checkpoint(hidden, x, use_reentrant=False, preserve_rng_state=False) if again else hidden(x)
        y = h @ second.T
        del h
        y.sum().backward()

    return peak_of(work, [first, second, x, first.grad, second.grad])


def test_a_backward_pass_by_hand() -> None:
    # relu's output (100 floats a row), its gradient and the gradient of its input: 3 × 100 × 4 bytes a row; y is freed with
    # its sum's backward, whose gradient [rows, 1] is expanded from one number.
    growth = mlp_bytes(2000, False) - mlp_bytes(1000, False)
    assert growth / 1000 == pytest.approx(3 * 400, rel=0.02)


def test_attention_counts_as_a_fused_kernel_that_keeps_no_scores() -> None:
    def work(length: int) -> int:
        def attend() -> None:
            query, key = (torch.empty(1, heads, length, 8, device="meta", requires_grad=True) for heads in (4, 2))
            out = torch.nn.functional.scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=True)
            assert out.shape == query.shape
            out.sum().backward()

        return peak_of(attend)

    assert work(2000) / work(1000) == pytest.approx(2.0, rel=0.01)


def test_a_models_parts_by_hand() -> None:
    found = estimate(shape(), SETTINGS)
    attention = 8 * 16 + 2 * 8 * 8 + 16 * 8 + 2 * 4  # queries, keys and values, output, two norms of heads
    block = attention + 3 * 8 * 16 + 2 * 8
    count = 50 * 8 + 3 * block + 8  # the head is tied to the embeddings
    assert found.parameters == count
    assert (found.weights, found.gradients, found.optimizer) == (4 * count, 4 * count, 8 * count)
    # 8 rollouts, 15 tokens before the last one, 3 layers, 2 heads of 4, keys and values
    assert found.cache == memory.cache_bytes(3, 2, 4, 8 * 15, "float32") == 8 * 15 * 3 * 2 * 4 * 2 * 4
    assert found.rollout > found.cache
    assert (found.reference, found.critic) == (0, 0)


def test_reference_critic_and_precision_by_hand() -> None:
    count, embeddings = estimate(shape(), SETTINGS).parameters, 50 * 8
    fast = dataclasses.replace(SETTINGS, reference="copy", critic="values", precision="bfloat16")
    found = estimate(shape(), fast)
    assert (found.weights, found.gradients, found.optimizer) == (4 * count, 4 * count, 8 * count)
    assert (found.reference, found.critic) == (4 * count, 12 * count)  # the trunk has the tied embeddings
    assert found.critic_work > 4 * count
    assert estimate(shape(), dataclasses.replace(fast, reference="named")).reference == 2 * count
    untied = estimate(shape(tie_word_embeddings=False), fast)
    assert untied.critic == 12 * (untied.parameters - embeddings)
    spoken = estimate(shape(tie_word_embeddings=False), dataclasses.replace(fast, critic="language"))
    assert spoken.critic == 12 * spoken.parameters
    assert spoken.critic_work > untied.critic_work
    assert "critic" not in estimate(shape(), SETTINGS).phases


def test_a_named_reference_or_critic_has_its_own_size() -> None:
    small, large = shape(), shape(num_hidden_layers=9)
    settings = dataclasses.replace(SETTINGS, reference="named", critic="values")
    found = Estimator(small, {"reference": large, "critic": large})(settings)
    assert found.reference == 4 * estimate(large, SETTINGS).parameters
    assert found.critic > 2 * Estimator(small)(settings).critic


def test_adapters_are_what_is_trained_and_their_base_has_the_type_of_the_arithmetic() -> None:
    pytest.importorskip("peft")
    whole, lora = estimate(shape(), SETTINGS), Lora(2, 4.0, ("all-linear",))
    found = estimate(shape(), dataclasses.replace(SETTINGS, lora=lora, precision="bfloat16", reference="copy"))
    # two factors of rank 2 at each of seven linear layers of a block
    pairs = ((8, 16), (8, 8), (8, 8), (16, 8), (8, 16), (8, 16), (16, 8))
    adapters = 3 * sum(2 * (a + b) for a, b in pairs)
    assert found.parameters == whole.parameters + adapters
    assert (found.weights, found.gradients, found.optimizer) == (
        2 * whole.parameters + 4 * adapters, 4 * adapters, 8 * adapters,
    )  # fmt: skip
    assert found.reference == 0
    assert found.activations < whole.activations


def test_generation_in_bfloat16_counts_the_linear_weights_that_are_cast_for_it() -> None:
    exact, fast = (estimate(shape(), dataclasses.replace(SETTINGS, precision=p)) for p in ("float32", "bfloat16"))
    linear = exact.parameters - 8 - 3 * (2 * 8 + 2 * 4)  # all but norms; the tied head is cast, the embeddings are not
    assert fast.cache == exact.cache / 2
    assert fast.rollout > 2 * linear + fast.cache


def test_activations_grow_with_rows_and_shrink_when_blocks_are_computed_again() -> None:
    estimator = Estimator(shape(hidden_act="silu"))
    long = dataclasses.replace(SETTINGS, prompt_tokens=24, new_tokens=40)
    one, two, four = (estimator(dataclasses.replace(long, microbatch_tokens=64 * n)).activations for n in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=0.02)
    again = estimator(dataclasses.replace(long, microbatch_tokens=256, checkpointing=True)).activations
    assert again < 0.6 * four
    halves = estimator(dataclasses.replace(long, microbatch_tokens=256, precision="bfloat16")).activations
    assert 0.45 * four < halves < four


def test_smaller_logit_chunks_take_less() -> None:
    wide = tiny.config(vocab_size=50_000, hidden_size=8, num_hidden_layers=1)
    estimator = Estimator(wide)
    found = [estimator(dataclasses.replace(SETTINGS, chunk_tokens=n)).activations for n in (4, 8)]
    assert found[1] - found[0] > 4 * 50_000 * 4


@pytest.mark.parametrize("checkpointing", [False, True])
def test_chunks_of_logits_that_are_computed_again_are_cast_as_the_first_time(checkpointing: bool) -> None:
    settings = dataclasses.replace(SETTINGS, precision="bfloat16", checkpointing=checkpointing)
    wide = Estimator(shape(vocab_size=5_000))
    chunked, whole = (wide(dataclasses.replace(settings, chunk_tokens=c)).activations for c in (8, 10**6))
    assert 0 < chunked < whole


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_chunks_of_logits_and_blocks_are_computed_again_as_they_were_computed(precision: str) -> None:
    settings = dataclasses.replace(SETTINGS, precision=precision, chunk_tokens=4)
    plain = estimate(shape(), settings).activations
    assert 0 < estimate(shape(), dataclasses.replace(settings, checkpointing=True)).activations < plain
    assert estimate(shape(), dataclasses.replace(settings, reference="copy", exact_kl=True)).activations >= plain


def test_settings_come_from_the_resolved_configuration() -> None:
    config = TrainConfig(
        algo=Grpo(), rollouts_per_step=64, generation_batch=48, max_new_tokens=20, tokens_per_microbatch=300,
        logit_chunk_tokens=7, kl_coef=0.1, top_p=0.9,
    )  # fmt: skip
    config = resolve(config, max_new_tokens=None, stop=(), reward_range=(0.0, 1.0))
    found = Settings.of(config, 80)
    assert found == Settings(80, 20, 300, 48, 8, chunk_tokens=7, reference="copy", top_p=0.9)
    assert (found.rollout_tokens, found.rows) == (100, 3)
    assert dataclasses.replace(found, microbatch_tokens=10).rows == 1
    assert Settings.of(dataclasses.replace(config, kl_coef=0.0), 80).reference == "none"
    assert Settings.of(dataclasses.replace(config, reference="other"), 80).reference == "named"
    vimpo = Settings.of(dataclasses.replace(config, kl_coef=0.0, algo=Vimpo()), 80)
    assert (vimpo.reference, vimpo.exact_kl) == ("copy", True)
    assert [Settings.of(dataclasses.replace(config, algo=a), 80).critic for a in (Ppo(), Ppo(critic="head"), Genac())] == [
        "values", "none", "language",
    ]  # fmt: skip
    assert Settings.of(dataclasses.replace(config, lora_rank=4), 80).lora == Lora(4, 8.0, ("all-linear",))


class Arithmetic(Estimator):
    """An estimator whose update takes 10 bytes a row and whose generation takes 1 a rollout."""

    def __init__(self) -> None:
        super().__init__(None)

    def __call__(self, settings: Settings) -> Estimate:
        less = 0.5 if settings.precision == "bfloat16" else 1
        return parts(weights=int(20 * less), activations=10 * settings.rows, rollout=settings.generation_rows)


def test_the_mildest_change_that_fits_is_proposed() -> None:
    settings = Settings(6, 10, 16 * 8, 64)  # update 20 + 80, rollout 20 + 64
    assert make_fit(Arithmetic(), settings, 100, FLAGS) == []
    assert make_fit(Arithmetic(), settings, 90, FLAGS) == ["--tokens-per-microbatch 64"]
    assert make_fit(Arithmetic(), settings, 60, FLAGS) == ["--tokens-per-microbatch 64", "--generation-batch 32"]
    assert make_fit(Arithmetic(), settings, 22, FLAGS) is None
    # Nothing alone suffices here, so each is taken as far as it goes.
    assert make_fit(Arithmetic(), settings, 20, FLAGS | {"precision"}) == [
        "--tokens-per-microbatch 16", "--generation-batch 1", "--precision bf16",
    ]  # fmt: skip


def test_doctor_rows_show_what_is_needed_and_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(algo=Grpo(), rollouts_per_step=16, device="cpu")
    monkeypatch.setattr(memory_report, "free_bytes", lambda device: int(8e9))
    model, fits = memory_report.memory_rows(config)
    assert "tiny: 0.8 million parameters; weights 3.2 MB, gradients 3.2 MB, optimizer 6.4 MB" in model.detail
    assert "prompts of 18 tokens, responses of 80" in model.detail
    assert (fits.name, fits.status, fits.fix) == ("memory for tiny", "ok", "")
    assert "8.0 GB free on cpu" in fits.detail
    monkeypatch.setattr(memory_report, "free_bytes", lambda device: int(60e6))
    _, misfit = memory_report.memory_rows(config)
    assert (misfit.status, misfit.needed) == ("problem", True)
    assert misfit.fix.startswith("add --tokens-per-microbatch ")
    flag, number = misfit.fix.removeprefix("add ").split()[:2]
    smaller = dataclasses.replace(config, **{flag[2:].replace("-", "_"): int(number)})
    _, now = memory_report.memory_rows(smaller)
    assert (now.status, now.fix) == ("ok", "")
    monkeypatch.setattr(memory_report, "free_bytes", lambda device: int(1e6))
    assert memory_report.memory_rows(config)[1].fix.startswith("no flag makes it fit: adapters (--lora.rank 32)")


def test_a_model_without_weights_and_tokenizer_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape().save_pretrained(tmp_path)
    monkeypatch.setattr(memory_report, "free_bytes", lambda device: None)
    model, fits = memory_report.memory_rows(TrainConfig(model=str(tmp_path), max_new_tokens=8))
    assert "prompts of 512 tokens (assumed: no tokenizer reads the task's), responses of 8" in model.detail
    assert "does not tell how much is free" in fits.detail
    assert "prompts of 9 tokens, " in memory_report.memory_rows(TrainConfig(model=str(tmp_path)), 9)[0].detail


def test_a_model_that_is_not_there_is_a_mistake_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--model \./gone: there is no such folder"):
        memory_report.memory_rows(TrainConfig(model="./gone"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"its configuration can not be had \(ValueError: Unrecognized model"):
        memory_report.memory_rows(TrainConfig(model=str(tmp_path)))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures through /proc")
def test_the_estimate_is_within_15_percent_of_what_a_step_takes(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "memory_check.py"
    command = [sys.executable, str(script), "--quick", "--json", str(tmp_path / "r.json")]
    environment = os.environ | {"PYTHONPATH": str(script.parents[1] / "src")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "r.json").read_text())
    assert len(found["cases"]) == 3
    for name, case in found["cases"].items():
        for phase, ratio in case["ratio"].items():
            assert ratio == pytest.approx(1, abs=0.15), f"{name}, {phase}: {case}"
    assert "critic" in found["cases"]["wide, ppo"]["ratio"]
