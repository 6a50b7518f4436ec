"""The transformers engine: right distribution, right log-probs, the same draws whatever the batch looks like."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch

from tests.helpers import random_batch, small_policy
from vantage.randomness import Stream, key, uniforms
from vantage.rollout.engine import Request, Rollout, Sampling
from vantage.rollout.sampling import sample, truncate
from vantage.rollout.stopping import StopWatch, completes, ended
from vantage.rollout.transformers_engine import TransformersEngine

END = 1


def engine_and_policy(generation_batch: int = 512, **options):
    policy = small_policy(**options)
    return TransformersEngine(policy, (END,), generation_batch), policy


def requests(count: int = 8, group: int = 3) -> list[Request]:
    prompts = random_batch(groups=count, group=1).prompt_ids
    return [Request(p, tuple(key(0, Stream.ROLLOUT, 1, i, j) for j in range(group))) for i, p in enumerate(prompts)]


class PlainEngine:
    """The protocol written down naively: one row at a time, the whole text anew for every token. What others equal."""

    def __init__(self, policy, end_ids) -> None:
        self.policy, self.end_ids = policy, tuple(end_ids)

    @torch.inference_mode()
    def generate(self, requests, sampling):
        return [[self._rollout(request, k, sampling) for k in request.keys] for request in requests]

    def _rollout(self, request, key_, sampling):
        draws = uniforms(np.array([key_], dtype=np.uint64), 0, max(1, request.limit(sampling)))[0]
        prefix, new, logp = list(request.prefix_ids), [], []
        while True:
            if self._stopped(prefix + new, len(prefix), sampling.stop):
                return Rollout(new, logp, "stop")
            if len(new) >= request.limit(sampling):
                return Rollout(new, logp, "length")
            logits = self.policy.model(input_ids=torch.tensor([request.prompt_ids + prefix + new])).logits[:, -1]
            uniform = torch.tensor([draws[len(new)]], dtype=torch.float64)
            token, logp_1 = sample(logits, uniform, sampling.temperature, sampling.top_p, sampling.top_k)
            new.append(int(token))
            logp.append(float(logp_1))

    def _stopped(self, response, known, stop):
        if response and response[-1] in self.end_ids:
            return True
        if not (response and stop):
            return False
        before, text = (self.policy.tokenizer.decode(r, skip_special_tokens=True) for r in (response[:-1], response))
        return any(text.endswith(s) and len(text) > len(before) for s in stop)


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


def test_the_cache_goes_by_the_name_that_this_release_of_transformers_has_for_it():
    engine, policy = engine_and_policy()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        engine.generate(requests(count=2, group=1), Sampling(3))

    class Older(torch.nn.Module):
        def forward(self, input_ids, past_key_values=None): ...

    assert dataclasses.replace(policy.head, model=Older()).cache_argument == "past_key_values"


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


def test_the_engine_equals_the_plain_one_with_prefixes_limits_and_stop_strings():
    engine, policy = engine_and_policy()
    plain = PlainEngine(policy, engine.end_ids)
    sampling = Sampling(12, temperature=0.8, top_p=0.95, top_k=12, stop=("aa", "7", "5>"))
    draw = np.random.default_rng(0)
    asked = [
        Request(
            r.prompt_ids,
            r.keys,
            prefix_ids=tuple(draw.integers(3, 99, size=i % 5).tolist()),
            max_new_tokens=(None, 3, 40, 7, 0)[i % 5],
        )
        for i, r in enumerate(requests(count=20, group=3))
    ]
    ours, expected = engine.generate(asked, sampling), plain.generate(asked, sampling)
    assert ids(ours) == ids(expected)
    assert [[r.finish_reason for r in g] for g in ours] == [[r.finish_reason for r in g] for g in expected]
    for a, b in zip(ours, expected):
        for x, y in zip(a, b):
            assert x.logp == pytest.approx(y.logp, abs=1e-5)
    lengths = [len(r.response_ids) for g in ours for r in g]
    assert {0, 3, 7, 40} <= set(lengths)
    assert max(lengths) == 40


@pytest.mark.parametrize("cut", [1, 7, 19])
def test_a_prefix_continued_greedily_gives_the_rest_of_the_rollout(cut):
    engine, _ = engine_and_policy()
    asked = requests(count=6, group=1)
    whole = [g[0].response_ids for g in engine.generate(asked, Sampling(20, temperature=0))]
    prefixed = [Request(r.prompt_ids, r.keys, tuple(w[:cut])) for r, w in zip(asked, whole)]
    rest = engine.generate(prefixed, Sampling(20, temperature=0))
    assert [w[:cut] + g[0].response_ids for w, g in zip(whole, rest)] == whole
    assert any(len(w) == 20 for w in whole)


def test_rows_leave_at_their_own_limit_and_the_rest_of_the_batch_does_not_notice():
    engine, _ = engine_and_policy()
    asked = requests(count=10)
    free = engine.generate(asked, Sampling(30))
    limited = [Request(r.prompt_ids, r.keys, max_new_tokens=3 + 5 * i) for i, r in enumerate(asked)]
    for i, (short, long) in enumerate(zip(engine.generate(limited, Sampling(30)), free)):
        for a, b in zip(short, long):
            limit = 3 + 5 * i
            if limit <= 30:
                assert a.response_ids == b.response_ids[:limit]
            cut = len(a.response_ids) == limit and a.response_ids[-1] != END
            assert a.finish_reason == ("length" if cut else "stop")
    equal = [Request(r.prompt_ids, r.keys, max_new_tokens=30) for r in asked]
    assert engine.generate(equal, Sampling(5)) == free


def test_a_prefix_that_has_ended_gets_no_tokens_and_no_forward_pass(monkeypatch):
    engine, policy = engine_and_policy()
    monkeypatch.setattr(policy, "next_logits", None)
    a, seven = (policy.tokenizer(c)["input_ids"][0] for c in "a7")
    sampling = Sampling(3, stop=("7",))
    cases = {(a, END): "stop", (a, seven): "stop", (a, a, a): "length", (a, a, a, a): "length", (a, a, END): "stop"}
    asked = [Request([5, 6], (1, 2), prefix) for prefix in cases] + [Request([5], (3,), max_new_tokens=0)]
    expected = [[Rollout([], [], reason)] * 2 for reason in cases.values()] + [[Rollout([], [], "length")]]
    assert engine.generate(asked, sampling) == expected


def test_a_stop_string_counts_if_it_ends_behind_the_prefix():
    _, policy = engine_and_policy()
    tokenizer = policy.tokenizer

    def found(prefix, new):
        watch = StopWatch(tokenizer, ("abc",), [tokenizer(prefix)["input_ids"] if prefix else []])
        return [watch.add(0, t) for t in tokenizer(new)["input_ids"]]

    assert found("", "xabc") == [False, False, False, True]
    assert found("xa", "bc") == [False, True]
    assert found("xab", "c") == [True]
    assert found("xabc", "d") == [False]
    assert found("abc", "xyzabc") == [False] * 5 + [True]
    assert found("x" * 30 + "ab", "c") == [True]
    assert found("abc" + "x" * 30, "yabc") == [False, False, False, True]


def test_the_engine_stops_where_a_stop_string_that_the_prefix_began_is_completed():
    engine, policy = engine_and_policy()
    tried = 0
    for request in requests(count=6, group=1):
        whole = engine.generate([request], Sampling(12, temperature=0))[0][0]
        text = policy.tokenizer.decode(whole.response_ids)
        for cut in range(1, len(text)):
            stop = text[cut - 1 : cut + 1]
            if text.find(stop) == cut - 1:
                tried += 1
                prefixed = Request(request.prompt_ids, request.keys, tuple(whole.response_ids[:cut]))
                (stopped,) = engine.generate([prefixed], Sampling(12, temperature=0, stop=(stop,)))[0]
                assert stopped.response_ids == whole.response_ids[cut : cut + 1]
                assert stopped.finish_reason == "stop"
    assert tried > 5


def test_a_prefix_is_over_where_its_last_token_completes_a_stop_string():
    tokenizer = engine_and_policy()[1].tokenizer

    def reason(text, limit=5):
        return ended(tokenizer(text)["input_ids"], limit, (END,), ("abc", "9"), tokenizer)

    assert reason("xabc") == reason("9") == reason("abc9", limit=0) == "stop"
    assert reason("abcx") is None
    assert reason("xab") is None
    assert reason("xab", limit=0) == "length"
    assert ended((), 0, (END,), ("abc",), tokenizer) == "length"
    assert ended((), 1, (END,), ("abc",), tokenizer) is None


def test_a_character_cut_by_the_prefix_belongs_to_what_is_new():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    ids_ = tokenizer("a終b")["input_ids"]
    assert len(ids_) == 5
    assert [completes(tokenizer, ids_[:4], known, ("終",)) for known in range(5)] == [True, True, True, True, False]
    long = "答えはこれで終わりです。"
    watch = StopWatch(tokenizer, (long,), [[]])
    assert [watch.add(0, t) for t in tokenizer("x" + long)["input_ids"]] == [False] * (3 * len(long)) + [True]


def test_a_request_of_many_keys_is_cut_to_the_generation_batch(monkeypatch):
    engine, policy = engine_and_policy(generation_batch=4)
    rows = []
    plain = policy.next_logits
    monkeypatch.setattr(
        policy, "next_logits", lambda ids_RS, *rest: (rows.append(len(ids_RS)), plain(ids_RS, *rest))[1]
    )
    asked = requests(count=2, group=10)
    found = ids(engine.generate(asked, Sampling(8)))
    assert max(rows) == 4
    assert found == ids(engine_and_policy()[0].generate(asked, Sampling(8)))


def test_the_prompt_is_prefilled_once_for_its_rollouts_and_ended_rows_leave(monkeypatch):
    engine, policy = engine_and_policy()
    rows = []
    plain = policy.next_logits
    monkeypatch.setattr(
        policy, "next_logits", lambda ids_RS, *rest: (rows.append(tuple(ids_RS.shape)), plain(ids_RS, *rest))[1]
    )
    generated = engine.generate(requests(count=6, group=4), Sampling(60))
    assert rows[0][0] == 6
    # A branch for every prompt and text so far that a running rollout has, and at most as many idle ones as are allowed.
    needed = [
        len({(i, tuple(r.response_ids[:t])) for i, g in enumerate(generated) for r in g if len(r.response_ids) > t})
        for t in range(1, len(rows))
    ]
    assert needed[0] < 24  # some siblings begin with the same token
    assert max(needed) > 20
    for (count, width), branches in zip(rows[1:], needed):
        assert width == 1
        assert 0.85 * count <= branches <= count


@pytest.mark.parametrize("temperature", [0.0, 0.02, 1.0])
def test_rollouts_that_share_their_computing_are_those_that_do_not(temperature):
    """From always the same to always apart, with limits and end tokens that part them from each other in between."""
    engine, _ = engine_and_policy()
    prompts = random_batch(groups=5, group=1).prompt_ids
    asked = [
        Request(p, tuple(key(0, Stream.ROLLOUT, 1, i, j) for j in range(7)), (), 3 + 5 * i)
        for i, p in enumerate(prompts)
    ]
    alone = [Request(r.prompt_ids, (k,), (), r.max_new_tokens) for r in asked for k in r.keys]
    sampling = Sampling(30, temperature=temperature)
    together = engine.generate(asked, sampling)
    apart = [engine.generate([r], sampling)[0][0] for r in alone]
    for found, expected in zip((r for g in together for r in g), apart, strict=True):
        assert found.response_ids == expected.response_ids
        assert found.finish_reason == expected.finish_reason
        assert found.logp == pytest.approx(expected.logp, abs=1e-9)
    kinds = [len({tuple(r.response_ids) for r in g}) for g in together]
    assert (max(kinds) == 1) == (temperature == 0)


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
