"""The forward pass against plain transformers: log-probs, entropies, hidden states, heads, chunks."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from tests.helpers import random_batch, small_policy
from vantage.policy import Policy, entropy

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
MODELS = {
    "gemma2, soft-capped": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=16, final_logit_softcapping=0.5)),
    "cohere, scaled": lambda: CohereForCausalLM(CohereConfig(**SIZES, logit_scale=0.3)),
    "granite, divided": lambda: GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=4.0)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=2, n_positions=64)),
}


def plainly(model, ids: list[int], prompt: int, temperature: float):
    """Log-probs and entropies of the response by the whole logits."""
    logits = model(input_ids=torch.tensor([ids])).logits[0].double() / temperature
    logp = logits.log_softmax(-1)
    positions = torch.arange(prompt - 1, len(ids) - 1)
    chosen = logp[positions, torch.tensor(ids[prompt:])]
    return chosen, -(logp.exp() * logp).sum(-1)[positions]


def assert_matches(policy: Policy, temperature: float, atol: float) -> None:
    batch = random_batch()
    forward = policy.forward(batch)
    for i, (p, r) in enumerate(zip(batch.prompt_ids, batch.response_ids)):
        logp, entropies = plainly(policy.model, p + r, len(p), temperature)
        assert torch.allclose(forward.logp_MT[i, : len(r)].double(), logp, atol=atol)
        assert torch.allclose(forward.entropy_MT[i, : len(r)].double(), entropies, atol=atol)
        assert not forward.mask_MT[i, len(r) :].any()
        assert (forward.logp_MT[i, len(r) :] == 0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_and_entropies_equal_those_of_the_whole_logits(temperature):
    assert_matches(small_policy(temperature=temperature), temperature, 1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_every_kind_of_head_is_computed_right_without_the_whole_logits(name):
    torch.manual_seed(0)
    model = MODELS[name]().double()
    for parameter in model.parameters():  # so that scaling and capping show
        torch.nn.init.normal_(parameter, std=0.4)
    policy = Policy(model, None, chunk_tokens=5)
    assert policy.head.trunk is not None
    assert_matches(policy, 1.0, 1e-6)


def test_a_head_that_is_not_recognised_falls_back_to_the_whole_forward():
    model = MODELS["llama"]().double()
    plain = model.forward

    def odd(*args, **kwargs):
        out = plain(*args, **kwargs)
        out.logits = out.logits**3
        return out

    model.forward = odd
    policy = Policy(model, None)
    assert policy.head.trunk is None
    assert_matches(policy, 1.0, 1e-6)


def test_chunks_change_neither_values_nor_gradients():
    batch, found = random_batch(), []
    for chunk in (0, 1, 7):
        policy = small_policy(chunk_tokens=chunk)
        forward = policy.forward(batch, entropy_grad=True)
        (forward.logp_MT.sum() + 0.3 * forward.entropy_MT.sum()).backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])
        found.append((forward.logp_MT.detach(), forward.entropy_MT.detach(), gradient))
    for other in found[1:]:
        for ours, theirs in zip(found[0], other):
            assert torch.allclose(ours, theirs, atol=1e-12)


def test_no_tensor_of_all_positions_times_vocabulary_is_made_forward_or_backward(monkeypatch):
    sizes: list[int] = []
    linear = torch.nn.functional.linear

    def recorded(x, weight, bias=None):
        out = linear(x, weight, bias)
        if weight.shape[0] == 99:
            sizes.append(out.numel() // 99)
        return out

    monkeypatch.setattr(torch.nn.functional, "linear", recorded)
    policy = small_policy(chunk_tokens=6)
    sizes.clear()
    policy.forward(random_batch()).logp_MT.sum().backward()
    tokens = int(random_batch().length_B.sum())
    assert max(sizes) <= 6
    assert sum(sizes) == 2 * tokens  # once forward, once recomputed for the backward pass


def test_entropy_carries_a_gradient_only_where_asked():
    policy, batch = small_policy(), random_batch()
    assert not policy.forward(batch).entropy_MT.requires_grad
    assert policy.forward(batch, entropy_grad=True).entropy_MT.requires_grad


def test_hidden_states_are_those_of_transformers_in_its_own_counting():
    policy, batch = small_policy(), random_batch()
    forward = policy.forward(batch, layers=(0, 1, 2, 3))
    for i, (p, r) in enumerate(zip(batch.prompt_ids, batch.response_ids)):
        theirs = policy.model(torch.tensor([p + r]), output_hidden_states=True).hidden_states
        for layer in range(4):
            assert torch.allclose(forward.hidden[layer][i, : len(p + r)], theirs[layer][0], atol=1e-12), layer
        assert not forward.hidden[0].requires_grad


def test_a_layer_that_the_model_has_not_is_refused_and_leaves_no_hook():
    policy = small_policy()
    with pytest.raises(ValueError, match="layer 4"):
        policy.forward(random_batch(), layers=(1, 4))
    assert not any(b._forward_pre_hooks for b in policy.head.blocks)


def test_entropy_of_known_rows():
    logits = torch.tensor([[2.0, 1, 0, -1], [0, 0, 0, 0], [5, 0, 0, 0], [1, 1, -1, -1]], dtype=torch.float64)
    expected = [0.947536963975, 1.386294361120, 0.119078940092, 1.058481035647]
    assert entropy(logits.log_softmax(-1)).tolist() == pytest.approx(expected, abs=1e-11)
    halved = [0.455428622853, 1.386294361120, 0.001498002929, 0.783241948326]
    assert entropy((logits / 0.5).log_softmax(-1)).tolist() == pytest.approx(halved, abs=1e-11)


def test_impossible_tokens_contribute_nothing_to_the_entropy():
    logp = torch.tensor([[0.0, float("-inf")], [-0.6931471805599453, -0.6931471805599453]], dtype=torch.float64)
    assert entropy(logp).tolist() == pytest.approx([0.0, 0.6931471805599453])
