"""Decoding in memory taken once, looks at which rollouts have ended, weights cast once: none of them changes a rollout."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers import SMALL, random_batch, small_policy
from vantage import tiny
from vantage.models.holding import Lora, with_adapters
from vantage.policy import Policy
from vantage.randomness import Stream, key
from vantage.rollout import slots, transformers_engine
from vantage.rollout.engine import Request, Sampling
from vantage.rollout.slots import column_spans, row_sizes, suits
from vantage.rollout.transformers_engine import TransformersEngine
from vantage.rollout.weights import cast_bytes, cast_once, make_twin

END = 1


def asked(count: int = 6, group: int = 4) -> list[Request]:
    prompts = random_batch(groups=count, group=1).prompt_ids
    return [
        Request(p, tuple(key(0, Stream.ROLLOUT, 1, i, j) for j in range(group)), (5, 6, 7)[: i % 3], 4 + 5 * i)
        for i, p in enumerate(prompts)
    ]


def grouped_policy(dtype: torch.dtype = torch.float64) -> Policy:
    """Llama with three queries to a key."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=99, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    return Policy(LlamaForCausalLM(config).to(dtype), tiny.tokenizer())


def same(found, expected, reach: float = 1e-9) -> None:
    for a, b in zip((r for g in found for r in g), (r for g in expected for r in g), strict=True):
        assert (a.response_ids, a.finish_reason) == (b.response_ids, b.finish_reason)
        assert a.logp == pytest.approx(b.logp, abs=reach)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("make", [small_policy, grouped_policy])
def test_a_static_cache_gives_the_rollouts_of_a_growing_one(make, temperature, monkeypatch):
    monkeypatch.setattr(slots, "FIRST_SPAN", 8)
    policy = make()
    sampling = Sampling(30, temperature=temperature, stop=("7a",))
    static = TransformersEngine(policy, (END,), 10, cache="static")
    runs = []
    plain = slots.SlotDecoder._forward
    monkeypatch.setattr(slots.SlotDecoder, "_forward", lambda self, shape: (runs.append(shape), plain(self, shape))[1])
    found = static.generate(asked(), sampling)
    same(found, TransformersEngine(policy, (END,), 10, cache="dynamic").generate(asked(), sampling))
    assert static._static_agrees
    assert len({rows for rows, _ in runs}) > 1
    assert len({columns for _, columns in runs}) > 1
    assert policy.text_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("every", [3, 50])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_how_often_ended_rollouts_are_looked_at_changes_nothing(every, cache):
    policy = small_policy()
    often = TransformersEngine(policy, (END,), cache="dynamic")
    seldom = TransformersEngine(policy, (END,), cache=cache)
    seldom.look_every = every
    apart = [Request(r.prompt_ids, (k,), (), 20) for r in asked() for k in r.keys]
    for requests in (asked(), apart):
        same(seldom.generate(requests, Sampling(20)), often.generate(requests, Sampling(20)))


def noise(self, token_N):
    return torch.randn(len(token_N), 99).double()


def unable(self, token_N):
    raise TypeError("attention takes no mask")


@pytest.mark.parametrize("step", [noise, unable])
def test_a_model_that_a_static_cache_does_not_suit_has_a_growing_one(step, monkeypatch):
    policy = small_policy()
    expected = TransformersEngine(policy, (END,), cache="dynamic").generate(asked(), Sampling(9))
    monkeypatch.setattr(slots.SlotDecoder, "step", step)
    engine = TransformersEngine(policy, (END,), cache="static")
    with pytest.warns(UserWarning, match="does not suit"):
        same(engine.generate(asked(), Sampling(9)), expected)
    assert engine._static_agrees is False
    policy.text_config._attn_implementation = "eager"
    assert not suits(policy)


def test_a_batch_without_room_is_halved(monkeypatch):
    policy = small_policy()
    expected = TransformersEngine(policy, (END,)).generate(asked(), Sampling(9))
    plain = transformers_engine.begin

    def narrow(policy, contexts):
        if len(contexts) > 2:
            raise torch.OutOfMemoryError("no room")
        return plain(policy, contexts)

    monkeypatch.setattr(transformers_engine, "begin", narrow)
    engine = TransformersEngine(policy, (END,))
    with pytest.warns(UserWarning, match="--generation-batch 12"):
        same(engine.generate(asked(), Sampling(9)), expected)
    assert engine.generation_batch == 6  # two prompts of four rollouts would be three with the next one
    monkeypatch.setattr(transformers_engine, "begin", lambda *args: narrow(None, [1, 2, 3]))
    with pytest.raises(torch.OutOfMemoryError), pytest.warns(UserWarning, match="not enough memory"):
        engine.generate(asked(), Sampling(9))


def test_rows_and_columns_are_run_in_few_sizes():
    assert row_sizes(8) == [1, 2, 3, 4, 6, 8]
    assert row_sizes(1) == [1]
    assert all(b <= 2 * a for a, b in zip(row_sizes(500), row_sizes(500)[1:]))
    assert column_spans(100) == [100]
    assert column_spans(1300) == [256, 512, 1024, 1300]


def test_weights_that_are_cast_once_give_the_same_rollouts_bit_for_bit():
    policy = small_policy(dtype=torch.float32, compute=torch.bfloat16)
    requests = [Request(r.prompt_ids, r.keys) for r in asked()]
    engine = TransformersEngine(policy, (END,))
    twins = []
    plain = transformers_engine.begin

    def seen(policy, contexts):
        twins.append(policy.generator)
        return plain(policy, contexts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers_engine, "begin", seen)
        first = engine.generate(requests, Sampling(12))
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        second = engine.generate(requests, Sampling(12))
        patch.setattr(transformers_engine, "cast_once", lambda policy: torch.no_grad())
        assert engine.generate(requests, Sampling(12)) == second != first
    assert [twin is None for twin in twins] == [False, False, True]
    assert twins[0] is not twins[1]
    assert policy.generator is None


def test_the_twin_shares_all_but_linear_weights():
    policy = small_policy(dtype=torch.float32, compute=torch.bfloat16)
    twin, model = make_twin(policy.model, torch.bfloat16), policy.model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert twin.model.embed_tokens.weight is model.model.embed_tokens.weight
    assert twin.lm_head.weight.dtype == torch.bfloat16
    own = [p for p in twin.parameters() if not any(p is q for q in model.parameters())]
    assert {p.dtype for p in own} == {torch.bfloat16}
    assert sum(p.numel() * 2 for p in own) == cast_bytes(model, torch.bfloat16)
    assert cast_bytes(model, torch.float32) == 0
    with cast_once(small_policy()) as nothing:
        assert nothing is None


def test_adapters_are_cast_once_too_and_go_with_a_static_cache(monkeypatch):
    pytest.importorskip("peft")
    model, tokenizer = tiny.fresh(0, **SMALL)
    adapted = with_adapters(model, Lora(4, 8.0, ("all-linear",)))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:  # adapters begin as no change at all
                parameter.add_(0.1 * torch.randn_like(parameter))
    policy = Policy(adapted, tokenizer, compute=torch.bfloat16)
    found = TransformersEngine(policy, (END,)).generate(asked(), Sampling(12))
    static = TransformersEngine(policy, (END,), cache="static")
    static.generate(asked(), Sampling(12))
    assert static._static_agrees
    monkeypatch.setattr(transformers_engine, "cast_once", lambda policy: torch.no_grad())
    assert TransformersEngine(policy, (END,)).generate(asked(), Sampling(12)) == found
