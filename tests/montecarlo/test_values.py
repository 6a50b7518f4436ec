"""Monte-Carlo truth: exact where values can be enumerated, honest about its noise, the same however it is asked for."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import vantage.montecarlo.values as montecarlo
from tests.helpers import small_policy, together
from tests.test_rollout import PlainEngine
from vantage.enumerable import EnumerableWorld
from vantage.errors import UserError
from vantage.montecarlo.cache import Samples, Store, model_digest, tokenizer_digest
from vantage.montecarlo.values import (
    Cache,
    State,
    noise_corrected_mse,
    noise_corrected_pearson,
    prefixes,
    reliability,
    truth,
)
from vantage.policy import Policy
from vantage.prompting import Chat
from vantage.rewards import RewardSet
from vantage.rollout.engine import Sampling
from vantage.rollout.sampling import truncate
from vantage.rollout.transformers_engine import TransformersEngine
from vantage.tasks.base import Problem

A, B, END = 0, 1, 2


class Letters:
    """The enumerable world's texts: prompt p is written `p`, tokens are a, b and E (left out as a special token)."""

    chat_template = None
    pad_token_id = 0

    def __call__(self, text, **_):
        return {"input_ids": [3 + int(text)]}

    def decode(self, ids, **_):
        return "".join("ab"[i] for i in ids if i != END)


class Chain:
    """T6 of the papers' sheet: reward 1 for an odd number of a's, responses of at most three tokens."""

    def __init__(self, offset=((0.0, 0.0, 0.0), (0.6, -0.4, 0.1))) -> None:
        theta = [[0.2, -0.1, 0.0], [-0.3, 0.4, 0.1], [0.5, 0.0, -0.2], [0.0, 0.0, 0.0]]
        self.world = EnumerableWorld(
            torch.tensor(theta, dtype=torch.float64),
            torch.tensor(offset, dtype=torch.float64),
            lambda _, y: float(y.count(A) % 2 == 1),
            max_length=3,
            end_token=END,
        )
        self.policy = Policy(self.world.policy().model, Letters())
        self.engine = PlainEngine(self.policy, (END,))
        self.rewards = RewardSet([odd])
        self.problems = [Problem("0"), Problem("1")]

    def truth(self, states, **options):
        defaults = {"k": 8, "seed": 0, "reward_range": (0.0, 1.0)}
        return truth(self.policy, self.engine, states, self.rewards, Sampling(3), **(defaults | options))

    def exact(self, prompt: int, prefix: tuple[int, ...]) -> float:
        with torch.no_grad():
            probability = self.world.log_probabilities(self.policy, prompt).exp().tolist()
        inside = [(p, y) for p, y in zip(probability, self.world.responses()) if y[: len(prefix)] == prefix]
        return sum(p * self.world.reward(prompt, y) for p, y in inside) / sum(p for p, _ in inside)


def odd(completions, **_):
    return [float(c.count("a") % 2 == 1) for c in completions]


def graded(completion_ids, **_):
    """0, 0.5 or 1 by the ids' sum."""
    return [sum(ids) % 3 / 2 for ids in completion_ids]


SAMPLING = Sampling(4, temperature=0.8, top_k=3)


class Small:
    """A transformer whose few continuations (top-k 3, 4 tokens) can be enumerated."""

    def __init__(self, generation_batch: int = 512) -> None:
        self.policy = small_policy()
        self.end = self.likeliest([20, 9])
        self.engine = TransformersEngine(self.policy, (self.end,), generation_batch)
        self.rewards = RewardSet([graded])
        self.asked: list[int] = []
        plain = self.engine.generate

        def generate(requests, sampling):
            self.asked += [len(r.keys) for r in requests]
            return plain(requests, sampling)

        self.engine.generate = generate

    def logits(self, ids):
        with torch.inference_mode():
            return self.policy.model(input_ids=torch.tensor([ids])).logits[:, -1]

    def likeliest(self, ids) -> int:
        return int(self.logits(ids).argmax())

    def truth(self, states, **options):
        defaults = {"k": 16, "seed": 3, "reward_range": (0.0, 1.0), "sampling": SAMPLING, "rewards": self.rewards}
        options = defaults | options
        return truth(self.policy, self.engine, states, options.pop("rewards"), options.pop("sampling"), **options)

    def exact(self, prompt_ids: list[int], prefix: list[int]) -> float:
        if len(prefix) >= SAMPLING.max_new_tokens or (prefix and prefix[-1] == self.end):
            return graded([prefix])[0]
        logits = self.logits(prompt_ids + prefix).float() / SAMPLING.temperature
        weight = truncate(torch.log_softmax(logits, -1), SAMPLING.top_p, SAMPLING.top_k)[0].double().exp()
        weight = weight / weight.sum()
        tokens = weight.nonzero().squeeze(1).tolist()
        return sum(float(weight[t]) * self.exact(prompt_ids, [*prefix, t]) for t in tokens)


def some_states(small: Small) -> list[State]:
    ids = small.policy.tokenizer("5+6=")["input_ids"]
    first = [int(t) for t in small.logits(ids).topk(3).indices[0]]
    problems = [Problem("5+6="), Problem("17+2=")]
    return [State(problems[0]), State(problems[1]), *(State(problems[0], (t,)) for t in first if t != small.end)]


# ---- the values


def test_values_of_prompts_and_prefixes_converge_to_those_of_enumeration():
    chain = Chain()
    states = [State(p, prefix) for p in chain.problems for prefix in ((), (A,), (B,), (A, B), (B, A))]
    found = chain.truth(states, k=400)
    exact = [chain.exact(int(s.problem.prompt), s.prefix_ids) for s in states]
    assert exact[0] == pytest.approx(0.386963275211864, abs=1e-12)
    error = np.abs(found.mean_N - exact)
    assert (error < 4 * np.sqrt(found.variance_N)).all()
    assert (found.variance_N > 0).all()
    assert np.sqrt(found.variance_N).max() < 0.026
    assert max(exact) - min(exact) > 0.3  # so the values of the states can not be confused


def test_values_under_temperature_and_top_k_converge_for_a_transformer():
    small = Small()
    states = some_states(small)
    found = small.truth(states, k=1500)
    exact = [small.exact(small.policy.tokenizer(s.problem.prompt)["input_ids"], list(s.prefix_ids)) for s in states]
    assert (np.abs(found.mean_N - exact) < 4 * np.sqrt(found.variance_N)).all()
    assert np.sqrt(found.variance_N).max() < 0.012
    assert np.ptp(exact) > 0.05
    assert len(states) >= 4


def test_the_variance_estimate_is_the_variance_of_the_mean_over_seeds():
    chain = Chain()
    found = [chain.truth([State(chain.problems[0])], k=6, seed=seed) for seed in range(500)]
    means = np.array([f.mean_N[0] for f in found])
    value = chain.exact(0, ())
    assert abs(means.mean() - value) < 4 * means.std() / math.sqrt(500)
    estimated = np.mean([f.variance_N[0] for f in found])
    assert estimated == pytest.approx(value * (1 - value) / 6, rel=0.05)
    assert estimated == pytest.approx(means.var(ddof=1), rel=0.2)


def test_mean_count_and_variance_of_known_outcomes():
    nan = math.nan
    outcome = np.array([[1, 0, 0, 1.0], [2, nan, 4, nan], [1, nan, nan, nan], [nan] * 4, [3] * 4, [nan] * 4])
    terminal = np.array([False] * 4 + [True] * 2)
    found = montecarlo.Truth(outcome, np.zeros((6, 4), dtype=int), terminal, (0.0, 4.0))
    assert found.count_N.tolist() == [4, 2, 1, 0, 4, 0]
    assert found.mean_N.tolist() == pytest.approx([0.5, 3, 1, nan, 3, nan], nan_ok=True)
    # Bernoulli: p(1 − p)/(n − 1) = 0.25/3; then s²/n = 2/2; unknown; unknown; exactly known; unknown.
    assert found.variance_N.tolist() == pytest.approx([0.25 / 3, 1, nan, nan, 0, nan], nan_ok=True)
    assert found.share_N.tolist() == pytest.approx([0.125, 0.75, 0.25, nan, 0.75, nan], nan_ok=True)
    assert found.share_variance_N[1] == pytest.approx(1 / 16)


def test_unscorable_continuations_count_neither_in_the_mean_nor_in_the_count():
    small = Small()

    def picky(completion_ids, **_):
        return [None if sum(ids) % 2 else float(sum(ids) % 4 == 0) for ids in completion_ids]

    states = some_states(small)
    found = small.truth(states, rewards=RewardSet([picky]), k=64)
    assert (found.count_N < 64).any()
    known = [row[~np.isnan(row)] for row in found.outcome_NK]
    assert found.count_N.tolist() == [len(r) for r in known]
    assert found.mean_N.tolist() == pytest.approx([r.mean() if len(r) else math.nan for r in known], nan_ok=True)

    def broken(completions, **_):
        raise ValueError("no verdict")

    none = small.truth(states[:1], rewards=RewardSet([broken]))
    assert none.count_N.tolist() == [0]
    assert np.isnan([none.mean_N[0], none.variance_N[0]]).all()
    assert "no verdict" in none.problems[0]


def test_terminal_states_get_the_verifiers_answer_without_sampling(monkeypatch):
    small = Small()
    monkeypatch.setattr(small.policy, "next_logits", None)
    seven = small.policy.tokenizer("7")["input_ids"][0]
    prefixes_ = [(5, small.end), (5, 6, 8, 9), (5, 6, 8, 9, 10), (5, seven)]
    stop = Sampling(4, temperature=0.8, top_k=3, stop=("7",))
    found = small.truth([State(Problem("5+6="), p) for p in prefixes_], sampling=stop, k=5)
    assert found.terminal_N.all()
    assert found.outcome_NK.tolist() == [[graded([p])[0]] * 5 for p in prefixes_]
    assert found.variance_N.tolist() == [0.0] * 4
    once = small.truth([State(Problem("5+6="), prefixes_[0])], sampling=stop, k=1)
    assert once.variance_N.tolist() == [0.0]
    assert found.generated == 0
    assert not found.tokens_NK.any()
    assert small.asked == [1] * 5  # each judged once a call


def test_continuations_fit_what_the_prefix_leaves_of_the_limit():
    small = Small()
    states = some_states(small)
    found = small.truth(states, k=40)
    for state, tokens_K in zip(states, found.tokens_NK):
        assert tokens_K.min() >= 1
        assert tokens_K.max() == 4 - len(state.prefix_ids)
    assert found.generated == found.tokens_NK.sum()


def test_the_verifier_sees_prefix_and_continuation_with_the_problems_columns():
    chain = Chain()
    seen = []

    def spy(prompts, completions, completion_ids, answer, **_):
        seen.extend(zip(prompts, completions, completion_ids, answer))
        return [0.0] * len(prompts)

    states = [State(Problem("0", {"answer": "x"}), (B, A)), State(Problem("1", {"answer": "y"}))]
    truth(chain.policy, chain.engine, states, RewardSet([spy]), Sampling(3), k=2, seed=0, reward_range=(0.0, 1.0))
    assert {(p, a) for p, _, _, a in seen} == {("0", "x"), ("1", "y")}
    assert len(seen) == 4
    for prompt, text, ids, _ in seen:
        assert text == Letters().decode(ids)
        assert len(ids) <= 3
        assert prompt == "1" or (text.startswith("ba") and len(ids) == 3)


def test_problems_that_differ_only_for_the_verifier_are_different_states():
    chain = Chain()

    def same(completions, answer, **_):
        return [float(c == a) for c, a in zip(completions, answer)]

    states = [State(Problem("0", {"answer": a})) for a in ("a", "b", "")]
    found = truth(
        chain.policy, chain.engine, states, RewardSet([same]), Sampling(3), k=60, seed=0, reward_range=(0.0, 1.0)
    )
    assert (found.outcome_NK.sum(0) <= 1).all()  # the same continuations, of which one text at most is right
    assert (found.mean_N > 0).all()


# ---- the draws


def test_truth_does_not_depend_on_company_order_batch_or_number_of_processes():
    states = some_states(Small())
    whole = Small().truth(states)
    backwards = Small().truth(states[::-1])
    assert np.array_equal(whole.outcome_NK, backwards.outcome_NK[::-1])
    for i, state in enumerate(states):
        assert np.array_equal(Small(generation_batch=3).truth([state]).outcome_NK[0], whole.outcome_NK[i])
    smalls = [Small(), Small()]
    for found in together(2, lambda world: smalls[world.rank].truth(states, world=world)):
        assert np.array_equal(found.outcome_NK, whole.outcome_NK)
        assert np.array_equal(found.tokens_NK, whole.tokens_NK)
        assert found.generated == whole.generated
    assert sorted(smalls[0].asked + smalls[1].asked) == [16] * len(states)
    assert smalls[0].asked
    assert smalls[1].asked


def test_equal_states_are_worked_on_once():
    small = Small()
    states = some_states(small)
    found = small.truth([*states, *states])
    assert small.asked == [16] * len(states)
    assert np.array_equal(found.outcome_NK[: len(states)], found.outcome_NK[len(states) :])
    assert found.generated == found.tokens_NK.sum() // 2


def test_states_of_equal_distribution_and_seeds_draw_apart():
    chain = Chain(offset=[[0.0] * 3] * 2)
    # Prompts do not matter here; after a b the last token decides alone, towards opposite rewards.
    states = [State(chain.problems[0]), State(chain.problems[1]), *(State(chain.problems[0], (t, B)) for t in (A, B))]
    first, second = (chain.truth(states, k=400, seed=seed).outcome_NK for seed in (0, 1))
    correlation = np.corrcoef(np.concatenate([first, second]))
    assert np.abs(correlation - np.eye(8)).max() < 0.2


def test_more_continuations_extend_fewer(tmp_path):
    states = some_states(Small())
    whole, few = Small().truth(states, k=64), Small().truth(states, k=16)
    assert np.array_equal(whole.outcome_NK[:, :16], few.outcome_NK)
    cache = Cache(tmp_path, "test 1")
    Small().truth(states, k=16, cache=cache)
    small = Small()
    extended = small.truth(states, k=64, cache=cache)
    assert small.asked == [48] * len(states)
    assert np.array_equal(extended.outcome_NK, whole.outcome_NK)
    assert np.array_equal(extended.tokens_NK, whole.tokens_NK)
    assert extended.generated == whole.tokens_NK[:, 16:].sum()


# ---- the cache


def test_a_second_call_generates_nothing_and_fewer_samples_are_a_part_of_more(tmp_path):
    states = [*some_states(Small()), State(Problem("5+6="), (5, 6, 8, 9))]
    first = Small().truth(states, cache=Cache(tmp_path, "test 1"))
    small = Small()
    small.policy.next_logits = None
    again = small.truth(states, cache=Cache(tmp_path, "test 1"))
    assert again.generated == 0 < first.generated
    assert np.array_equal(first.outcome_NK, again.outcome_NK)
    assert np.array_equal(first.tokens_NK, again.tokens_NK)
    fewer = small.truth(states[:2], k=5, cache=Cache(tmp_path, "test 1"))
    assert np.array_equal(fewer.outcome_NK, first.outcome_NK[:2, :5])
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} == {".json", ".safetensors"}


def folders(path: Path) -> set[str]:
    return {p.name for p in path.iterdir()}


def test_every_part_of_the_setting_has_a_folder_of_its_own(tmp_path):
    def ask(small=None, verifier="test 1", **options):
        before = folders(tmp_path)
        small = small or Small()
        found = small.truth([State(Problem("5+6="))], k=2, cache=Cache(tmp_path, verifier), **options)
        return folders(tmp_path) - before, found.generated

    def changed(change):
        small = Small()
        change(small)
        return small

    def nudge(small):
        with torch.no_grad():
            small.policy.model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-9

    def other_reward(completion_ids, **_):
        return graded(completion_ids)

    assert len(ask()[0]) == 1
    assert ask() == (set(), 0)
    others = [
        {"small": changed(nudge)},
        {"small": changed(lambda s: s.policy.tokenizer.add_tokens(["<new>"]))},
        {"small": changed(lambda s: setattr(s, "engine", TransformersEngine(s.policy, (s.end, 50))))},
        {"verifier": "test 2"},
        {"seed": 4},
        {"chat": Chat("never")},
        {"sampling": Sampling(4, temperature=0.9, top_k=3)},
        {"sampling": Sampling(5, temperature=0.8, top_k=3)},
        {"rewards": RewardSet([other_reward])},
        {"rewards": RewardSet([graded], [2.0])},
    ]
    for options in others:
        new, generated = ask(**options)
        assert len(new) == 1, options
        assert generated > 0, options
        assert json.loads((tmp_path / new.pop() / "setting.json").read_text())["format"] == 2


def test_a_model_keeps_its_digest_through_saving_and_loading(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy = small_policy(dtype=torch.bfloat16)
    policy.model.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert model_digest(loaded) == model_digest(policy.model)
    assert model_digest(loaded.float()) != model_digest(policy.model)
    digest = tokenizer_digest(tokenizer)
    assert digest == tokenizer_digest(policy.tokenizer)
    tokenizer(["a", "aaa"], padding=True, truncation=True, max_length=2)
    assert tokenizer_digest(tokenizer) == digest


def test_a_run_that_dies_keeps_what_it_had_flushed(tmp_path, monkeypatch):
    monkeypatch.setattr(montecarlo, "FLUSH_ROLLOUTS", 32)
    small = Small()
    states = some_states(small)
    assert len(states) >= 4
    calls = []

    def dying(completion_ids, **_):
        calls.append(len(completion_ids))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return graded(completion_ids)

    with pytest.raises(KeyboardInterrupt):
        small.truth(states, cache=Cache(tmp_path, "test 1"), rewards=RewardSet([dying]))
    assert calls == [32, 32]
    calls[:] = [0, 0]
    small.asked.clear()
    found = small.truth(states, cache=Cache(tmp_path, "test 1"), rewards=RewardSet([dying]))
    assert small.asked == [16] * (len(states) - 2)
    assert np.array_equal(found.outcome_NK, Small().truth(states).outcome_NK)


def store(path: Path, fingerprint: str = "f") -> Store:
    path.mkdir(exist_ok=True)
    return Store(path, fingerprint)


def samples(count: int, start: int = 0) -> Samples:
    return Samples(np.arange(start, start + count, dtype=np.float64), np.arange(count))


ONE, TWO = b"1" * 32, b"2" * 32


@pytest.mark.parametrize("moment", ["os.fsync", "Path.replace"])
def test_a_kill_while_a_file_is_written_leaves_the_others_alone(tmp_path, monkeypatch, moment):
    kept = store(tmp_path)
    kept.write({ONE: samples(3)})

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"vantage.montecarlo.cache.{moment}", killed)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process does not tidy up
        with pytest.raises(KeyboardInterrupt):
            kept.write({TWO: samples(4)})
    assert len(list(tmp_path.glob(".*.tmp"))) == 1
    assert set(kept.load({ONE, TWO})) == {ONE}
    kept.sweep()
    assert len(list(tmp_path.glob(".*.tmp"))) == 1  # it might be another process's of this moment
    monkeypatch.setattr("vantage.montecarlo.cache.STALE_SECONDS", -1.0)
    kept.sweep()
    assert not list(tmp_path.glob(".*.tmp"))


def test_files_that_are_broken_or_of_another_setting_are_left_out(tmp_path):
    kept = store(tmp_path)
    kept.write({ONE: samples(3)})
    (good,) = tmp_path.glob("*.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(good.read_bytes()[:-5])
    store(tmp_path, "another").write({TWO: samples(9), ONE: samples(9)})
    with pytest.warns(UserWarning, match=r"broken\.safetensors is left out"):
        found = kept.load({ONE, TWO})
    assert set(found) == {ONE}
    assert found[ONE].outcome_K.tolist() == [0, 1, 2]


def test_the_longest_list_of_samples_wins_whoever_wrote_last(tmp_path):
    kept = store(tmp_path)
    for count in (2, 7, 4):
        kept.write({ONE: samples(count), TWO: samples(count + 1, start=50)})
    found = kept.load({ONE, TWO, b"3" * 32})
    assert {name: s.outcome_K.tolist() for name, s in found.items()} == {
        ONE: list(range(7)),
        TWO: list(range(50, 58)),
    }
    assert found[TWO].tokens_K.tolist() == list(range(8))


@pytest.mark.filterwarnings("error")
def test_writers_at_the_same_time_do_not_spoil_each_other(tmp_path):
    def write(start):
        kept = store(tmp_path)
        for i in range(15):
            kept.write({ONE: samples(start + i), bytes([start, i] * 16): samples(2)})

    threads = [threading.Thread(target=write, args=(start,)) for start in (20, 40, 60)]
    for thread in threads:
        thread.start()
    names = {ONE} | {bytes([start, i] * 16) for start in (20, 40, 60) for i in range(15)}
    while any(thread.is_alive() for thread in threads):
        store(tmp_path).load(names)  # a reader in between sees whole files only
    for thread in threads:
        thread.join()
    found = store(tmp_path).load(names)
    assert set(found) == names
    assert found[ONE].outcome_K.tolist() == list(range(74))
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_cache_that_can_not_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can not be written") as caught:
        Small().truth([State(Problem("5+6="))], cache=Cache(tmp_path / "file", "test 1"))
    assert "\n" not in str(caught.value)


# ---- asking


def test_cuts_of_a_finished_rollout_become_states():
    problem = Problem("5+6=")
    found = prefixes(problem, [7, 8, 9], [0, 2, 3])
    assert [s.prefix_ids for s in found] == [(), (7, 8), (7, 8, 9)]
    assert all(s.problem is problem for s in found)
    for cut in (-1, 4):
        with pytest.raises(ValueError, match=rf"cut {cut} is not in 0\.\.3"):
            prefixes(problem, [7, 8, 9], [cut])


@pytest.mark.parametrize(
    ("options", "message"), [({"k": 0}, "k is 0"), ({"reward_range": (1.0, 1.0)}, r"--reward-range is \(1.0, 1.0\)")]
)
def test_impossible_requests_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Chain().truth([], **options)


def test_no_states_have_no_values():
    found = Chain().truth([], k=3)
    assert found.outcome_NK.shape == (0, 3)
    assert found.mean_N.tolist() == found.variance_N.tolist() == []


# ---- metrics


def test_corrected_metrics_of_small_numbers():
    half = np.array([0.5, 0.5])
    assert noise_corrected_mse(half, np.array([1.0, 0.0]), np.array([0.1, 0.05])) == pytest.approx(0.25 - 0.075)
    assert noise_corrected_mse(half, half, np.array([0.1, 0.1])) == pytest.approx(-0.1)
    assert reliability(np.array([0.0, 1.0]), np.array([0.1, 0.1])) == pytest.approx(1 - 0.1 / 0.5)
    three = np.array([0.0, 1.0, 2.0])
    assert noise_corrected_pearson(5 - three, three, np.full(3, 0.19)) == pytest.approx(-1 / 0.9)
    assert math.isnan(noise_corrected_pearson(three, three, np.full(3, 1.5)))
    assert math.isnan(noise_corrected_pearson(np.ones(3), three, np.full(3, 0.19)))
    assert math.isnan(reliability(np.ones(3), np.zeros(3)))


def test_states_without_a_known_noise_are_left_out_of_metrics():
    nan = math.nan
    mean, variance = np.array([1.0, 0.0, 0.7, nan]), np.array([0.1, 0.05, nan, nan])
    assert noise_corrected_mse(np.full(4, 0.5), mean, variance) == pytest.approx(0.175)
    assert reliability(mean, variance) == pytest.approx(1 - 0.075 / 0.5)
    assert math.isnan(noise_corrected_mse(np.array([nan]), np.ones(1), np.ones(1)))
    assert math.isnan(noise_corrected_pearson(np.ones(1), np.ones(1), np.ones(1)))


def test_noise_biases_the_naive_metrics_and_not_the_corrected_ones():
    draw = np.random.default_rng(0)
    states, k, repeats = 200, 8, 400
    value = draw.beta(2, 3, states)
    predicted = value + 0.1 * draw.standard_normal(states)
    true_mse, true_r = ((predicted - value) ** 2).mean(), np.corrcoef(predicted, value)[0, 1]
    naive_mse, mse, naive_r, r = (np.zeros(repeats) for _ in range(4))
    for i in range(repeats):
        mean = draw.binomial(k, value) / k
        variance = mean * (1 - mean) / (k - 1)
        naive_mse[i], naive_r[i] = ((predicted - mean) ** 2).mean(), np.corrcoef(predicted, mean)[0, 1]
        mse[i], r[i] = (f(predicted, mean, variance) for f in (noise_corrected_mse, noise_corrected_pearson))

    def z(found, true):
        return (found.mean() - true) / (found.std(ddof=1) / math.sqrt(repeats))

    assert z(naive_mse, true_mse) > 50
    assert naive_mse.mean() - true_mse == pytest.approx((value * (1 - value)).mean() / k, rel=0.05)
    assert abs(z(mse, true_mse)) < 4
    assert z(naive_r, true_r) < -50
    assert r.mean() == pytest.approx(true_r, abs=0.01)  # consistent, not unbiased
