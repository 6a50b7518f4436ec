"""Log-probs of labels behind a context: against whole forward passes, for every shape of label and context."""

from __future__ import annotations

import pytest
import torch

from tests.helpers import small_policy
from vantage.genac.labels import ending_logp
from vantage.rollout import prefill

ENDINGS = [[5], [6, 9], [6, 5, 9], [7, 9, 9], [6, 5, 9, 4], [8, 9]]
"""One token, a common beginning, one that another goes on with, different lengths."""


def by_hand(policy, context, ending):
    """The sum of its tokens' log-probs from one pass over everything."""
    logits = policy.model(torch.tensor([[*context, *ending]])).logits[0].double() / policy.temperature
    table = torch.log_softmax(logits, -1)
    return sum(float(table[len(context) + i - 1, token]) for i, token in enumerate(ending))


@pytest.mark.parametrize("cached", [2**16, 100, 1])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@torch.no_grad()
def test_every_label_has_the_log_prob_of_a_whole_pass(cached, temperature):
    policy = small_policy(dtype=torch.float64)
    policy.temperature = temperature
    contexts = [[3, 4, 5, 6, 7], [4], [3, 4, 8], [9, 9, 9, 9, 9, 9, 9, 9]]
    found = ending_logp(policy, contexts, ENDINGS, cached)
    expected = [[by_hand(policy, context, ending) for ending in ENDINGS] for context in contexts]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=2e-6)


@torch.no_grad()
def test_contexts_that_begin_alike_may_share_what_they_begin_with(monkeypatch):
    policy = small_policy(dtype=torch.float64)
    contexts = [[3, 4, 5, 6, 7, 8] * 4 + [9, last, last] for last in range(3, 9)]
    alone = ending_logp(policy, contexts, ENDINGS)
    monkeypatch.setattr(prefill, "LEAST_SAVED", 1)
    assert prefill.sharing(contexts) is not None
    torch.testing.assert_close(ending_logp(policy, contexts, ENDINGS), alone, rtol=0, atol=2e-6)


def test_no_context_has_no_labels():
    assert ending_logp(small_policy(), [], ENDINGS).shape == (0, len(ENDINGS))


def test_a_context_is_run_once(monkeypatch):
    policy = small_policy(dtype=torch.float64)
    seen, run = [], policy.next_logits
    monkeypatch.setattr(policy, "next_logits", lambda ids, *rest: seen.append(ids.shape) or run(ids, *rest))
    ending_logp(policy, [[3, 4, 5, 6, 7, 8, 9, 3]] * 2, ENDINGS)
    assert seen == [(2, 8), (2 * 3, 1), (2 * 2, 1), (2 * 1, 1)]  # contexts; 6, 7, 8; 6 5, 7 9; 6 5 9
