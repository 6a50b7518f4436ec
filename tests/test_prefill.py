"""What contexts begin with is run once: who shares what with whom, and that nothing else changes."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import DynamicCache

from tests.helpers import small_policy
from vantage.randomness import Stream, key
from vantage.rollout import prefill as module
from vantage.rollout.engine import Request, Sampling
from vantage.rollout.prefill import common, prefill, sharing
from vantage.rollout.transformers_engine import TransformersEngine


def nested(problems: int = 3, states: int = 4, head: int = 20, step: int = 6, tail: int = 2) -> list[list[int]]:
    """Prompts of a critic: instructions, problem, response so far, and an end that is different for all."""
    draw = random.Random(0)
    found = []
    for p in range(problems):
        problem = [5] * head + [draw.randrange(6, 40) for _ in range(8 + p)]
        response = [draw.randrange(6, 40) for _ in range(states * step)]
        for k in range(states):
            found.append(problem + response[: k * step] + [41 + k] * tail)
    return found


def test_tokens_in_common_from_the_beginning():
    assert common([1, 2, 3], [1, 2, 4]) == 2
    assert common([1, 2], [1, 2, 3]) == 2
    assert common([], [1]) == 0
    draw = random.Random(1)
    for _ in range(50):
        a, b = ([draw.randrange(2) for _ in range(draw.randrange(9))] for _ in range(2))
        plain = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
        assert common(a, b) == plain


def test_states_of_a_response_follow_the_longest_one(monkeypatch):
    monkeypatch.setattr(module, "LEAST_SAVED", 1)
    contexts = nested()
    plan = sharing(contexts)
    assert plan.head == 20
    assert [contexts[i] for i in plan.leaders] == sorted(contexts[3::4])  # each problem's last state
    for context, place, shared in zip(contexts, plan.leader_of, plan.shared):
        leader = contexts[plan.leaders[place]]
        assert context[:shared] == leader[:shared]
        assert shared == len(context) - 2 or (context == leader and shared == len(context) - 1)
    assert plan.tokens(contexts) == 20 + 3 * (max(map(len, contexts)) - 21) + 12 * 2
    assert plan.tokens(contexts) < 0.5 * 12 * max(map(len, contexts))


def test_contexts_that_share_little_or_are_few_are_run_alone(monkeypatch):
    assert sharing(nested()) is None  # it would save less than LEAST_SAVED tokens
    monkeypatch.setattr(module, "LEAST_SAVED", 1)
    draw = random.Random(2)
    assert sharing([[draw.randrange(50) for _ in range(30)] for _ in range(9)]) is None
    assert sharing([[5] * 40]) is None
    assert sharing([[5], [5], [5]]) is None
    assert sharing([[5] * 30] * 5) is not None  # equal ones: all but the last token is run once


@pytest.mark.parametrize("contexts", [nested(), nested(head=0), [[5] * 30] * 5, nested(tail=1), nested()[::-1]])
def test_shared_contexts_have_the_logits_that_each_has_alone(contexts, monkeypatch):
    monkeypatch.setattr(module, "LEAST_SAVED", 1)
    policy = small_policy()
    widths = []
    plain = policy.next_logits
    monkeypatch.setattr(
        policy, "next_logits", lambda ids, *rest: (widths.append(tuple(ids.shape)), plain(ids, *rest))[1]
    )
    with torch.inference_mode():
        mask_PS, padded, logits_PV = prefill(policy, contexts, DynamicCache(config=policy.text_config))
        for context, row_V in zip(contexts, logits_PV):
            alone_V = policy.model(input_ids=torch.tensor([context])).logits[0, -1]
            torch.testing.assert_close(row_V, alone_V, rtol=0, atol=1e-9)
    assert padded == (not bool(mask_PS.all()))
    assert mask_PS.sum(1).tolist() == [len(c) for c in contexts]
    assert 2 <= len(widths) <= 3
    assert sum(rows * width for rows, width in widths) == sharing(contexts).tokens(contexts)


def test_rollouts_behind_shared_prefixes_are_those_behind_whole_ones(monkeypatch):
    policy = small_policy()
    engine = TransformersEngine(policy, (1,))
    asked = [
        Request(c[:22], tuple(key(0, Stream.ROLLOUT, 1, i, j) for j in range(3)), tuple(c[22:]))
        for i, c in enumerate(nested())
    ]
    sampling = Sampling(60)
    apart = engine.generate(asked, sampling)
    monkeypatch.setattr(module, "LEAST_SAVED", 1)
    together = engine.generate(asked, sampling)
    for some, others in zip(together, apart):
        assert [r.response_ids for r in some] == [r.response_ids for r in others]
        for one, other in zip(some, others):
            assert one.logp == pytest.approx(other.logp, abs=1e-9)


def test_a_cache_with_a_sliding_window_is_filled_row_by_row(monkeypatch):
    monkeypatch.setattr(module, "LEAST_SAVED", 1)
    policy = small_policy()
    cache = DynamicCache(config=policy.text_config)
    assert module._plain(cache)

    class Window(type(cache.layers[0])):
        pass

    cache.layers[0] = Window()
    assert not module._plain(cache)
