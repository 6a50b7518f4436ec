"""The transformers engine: right distribution, right log-probs, the same draws whatever the batch looks like."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.helpers import random_batch, small_policy
from vantage.randomness import Stream, key
from vantage.rollout.engine import Request, Sampling
from vantage.rollout.sampling import sample, truncate
from vantage.rollout.transformers_engine import TransformersEngine

END = 1


def engine_and_policy(generation_batch: int = 512, **options):
    policy = small_policy(**options)
    return TransformersEngine(policy, (END,), generation_batch), policy


def requests(count: int = 8, group: int = 3) -> list[Request]:
    prompts = random_batch(groups=count, group=1).prompt_ids
    return [Request(p, tuple(key(0, Stream.ROLLOUT, 1, i, j) for j in range(group))) for i, p in enumerate(prompts)]


def ids(generated):
    return [[r.response_ids for r in group] for group in generated]


def test_rollouts_do_not_depend_on_batch_size_order_or_company():
    engine, _ = engine_and_policy()
    asked = requests()
    whole = ids(engine.generate(asked, Sampling(20)))
    assert ids(engine.generate(asked[::-1], Sampling(20)))[::-1] == whole
    assert ids(engine_and_policy(generation_batch=1)[0].generate(asked, Sampling(20))) == whole
    assert ids(engine.generate(asked[3:4], Sampling(20))) == whole[3:4]
    single = Request(asked[2].prompt_ids, asked[2].keys[1:2])
    assert ids(engine.generate([single], Sampling(20))) == [[whole[2][1]]]


def test_siblings_differ_and_another_seed_gives_other_rollouts():
    engine, _ = engine_and_policy()
    group = ids(engine.generate(requests(), Sampling(20)))[0]
    assert len({tuple(r) for r in group}) == 3
    other = [Request(r.prompt_ids, tuple(k + 1 for k in r.keys)) for r in requests()]
    assert ids(engine.generate(other, Sampling(20)))[0] != group


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_behaviour_logprobs_equal_those_of_the_forward_pass(temperature):
    engine, policy = engine_and_policy(temperature=temperature)
    asked = requests(count=5, group=2)
    rollouts = [r for g in engine.generate(asked, Sampling(20, temperature=temperature)) for r in g]
    batch = random_batch(groups=5, group=2)
    batch = type(batch)(
        **{
            **batch.__dict__,
            "prompt_ids": [a.prompt_ids for a in asked for _ in range(2)],
            "response_ids": [r.response_ids for r in rollouts],
        }
    )
    forward = policy.forward(batch)
    for i, rollout in enumerate(rollouts):
        ours = forward.logp_MT[i, : len(rollout.logp)]
        assert torch.allclose(ours, torch.tensor(rollout.logp, dtype=torch.float64), atol=1e-5)


def test_greedy_tokens_equal_those_of_generate():
    engine, policy = engine_and_policy()
    for request in requests(count=4, group=1):
        ours = ids(engine.generate([request], Sampling(15, temperature=0)))[0][0]
        theirs = policy.model.generate(
            torch.tensor([request.prompt_ids]), max_new_tokens=15, do_sample=False, eos_token_id=END, pad_token_id=0
        )[0, len(request.prompt_ids) :].tolist()
        assert ours == theirs


def test_responses_end_with_the_end_token_or_at_the_limit():
    engine, _ = engine_and_policy()
    seen = set()
    for group in engine.generate(requests(count=40), Sampling(30)):
        for rollout in group:
            seen.add(rollout.finish_reason)
            assert END not in rollout.response_ids[:-1]
            assert (rollout.response_ids[-1] == END) == (rollout.finish_reason == "stop")
            assert len(rollout.response_ids) == 30 or rollout.finish_reason == "stop"
            assert len(rollout.logp) == len(rollout.response_ids)
    assert seen == {"stop", "length"}


def test_a_stop_string_ends_a_response_and_stays_in_it():
    engine, policy = engine_and_policy()
    stopped = 0
    for group in engine.generate(requests(count=40), Sampling(40, stop=("a", "7"))):
        for rollout in group:
            text = policy.tokenizer.decode(rollout.response_ids, skip_special_tokens=True)
            if rollout.finish_reason == "stop" and rollout.response_ids[-1] != END:
                stopped += 1
                assert text[-1] in "a7"
            assert not set(text[:-1]) & set("a7")
    assert stopped > 5


def test_the_prompt_is_prefilled_once_for_its_rollouts_and_ended_rows_leave(monkeypatch):
    engine, policy = engine_and_policy()
    rows = []
    plain = policy.next_logits
    monkeypatch.setattr(
        policy, "next_logits", lambda ids_RS, *rest: (rows.append(tuple(ids_RS.shape)), plain(ids_RS, *rest))[1]
    )
    generated = engine.generate(requests(count=6, group=4), Sampling(60))
    assert rows[0][0] == 6
    assert rows[1] == (24, 1)
    alive = [sum(len(r.response_ids) > t for g in generated for r in g) for t in range(1, len(rows))]
    for (count, _), running in zip(rows[1:], alive):
        assert running <= count
        assert count * 0.85 <= running or count == 24 or running >= 0.85 * count


def test_sampling_follows_the_distribution():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0]).log_softmax(0)
    uniform = torch.from_numpy((np.arange(40_000) + 0.5) / 40_000)
    for temperature in (1.0, 0.5):
        token, logp = sample(logits.expand(40_000, 4), uniform, temperature, 1.0, 0)
        expected = (logits / temperature).softmax(0)
        assert torch.allclose(torch.bincount(token, minlength=4) / 40_000, expected, atol=1e-4)
        assert torch.allclose(logp.exp(), expected[token], atol=1e-6)


def test_top_k_and_top_p_keep_what_they_should():
    logp = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert truncate(logp, 1.0, 2).isfinite().tolist() == [[True, True, False, False]]
    assert truncate(logp, 0.79, 0).isfinite().tolist() == [[True, True, False, False]]
    assert truncate(logp, 0.81, 0).isfinite().tolist() == [[True, True, True, False]]
    assert truncate(logp, 1e-9, 0).isfinite().tolist() == [[True, False, False, False]]
    shuffled = logp[:, [2, 0, 3, 1]]
    assert truncate(shuffled, 0.79, 0).isfinite().tolist() == [[False, True, False, True]]


def test_the_last_uniform_number_below_one_still_gives_a_token():
    token, _ = sample(torch.zeros(1, 5), torch.tensor([1 - 2.0**-53], dtype=torch.float64), 1.0, 1.0, 0)
    assert token.item() == 4
