"""Which answers count as one in a majority vote."""

from __future__ import annotations

import random
import time
from types import SimpleNamespace

import numpy as np
import pytest

from vantage.evaluation.ballots import joined
from vantage.evaluation.command import per_problem
from vantage.evaluation.scoring import Evaluation, evaluate
from vantage.rewards.functions import RewardSet
from vantage.rewards.loading import from_spec
from vantage.rollout.engine import Rollout, Sampling
from vantage.tasks.base import Problem
from vantage.verifiers.math import MathVerifier


def equal_by(value):
    return lambda pairs: [value(a) == value(b) for a, b in pairs]


def test_equal_answers_get_the_spelling_that_most_have():
    votes = [["1/2", "0.5", "0.5", None, "3"], ["3", "3.0", "1/2"], [None, None], []]
    assert joined(votes, equal_by(lambda text: eval(text))) == [
        ["0.5", "0.5", "0.5", None, "3"],
        ["3", "3", "1/2"],
        [None, None],
        [],
    ]


def test_nothing_is_asked_where_there_is_nothing_to_compare():
    def never(pairs):
        raise AssertionError(pairs)

    assert joined([["1", "1", None], ["2"]], never) == [["1", "1", None], ["2"]]


def test_problems_are_asked_about_together_and_pairs_once():
    asked = []

    def same(pairs):
        asked.append(list(pairs))
        return [False] * len(pairs)

    assert joined([["a", "b"], ["a", "b", "c"]], same) == [["a", "b"], ["a", "b", "c"]]
    assert asked == [[("a", "b"), ("a", "c"), ("b", "c")]]


def test_what_is_not_transitive_still_gives_a_partition():
    near = lambda pairs: [abs(int(a) - int(b)) <= 1 for a, b in pairs]  # noqa: E731
    draw = random.Random(0)
    for _ in range(200):
        row = [str(draw.randrange(8)) for _ in range(9)]
        [found] = joined([row], near)
        heads = {name: name for name in found}
        assert all(joined([list(heads)], lambda pairs: [False] * len(pairs))[0][i] == h for i, h in enumerate(heads))
        for vote, head in zip(row, found, strict=True):
            assert abs(int(vote) - int(head)) <= 1
            assert found[row.index(head)] == head  # a representative stands for itself


@pytest.fixture(scope="module")
def math():
    verifier = MathVerifier(workers=1)
    yield verifier
    verifier.close()


def test_math_says_which_answers_are_the_same(math):
    pairs = {
        ("1/2", "0.5"): True,
        (r"\frac{2}{4}", "0.5"): True,
        (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"): True,
        ("1/3", "0.5"): False,
        ("(1,2)", "(2,1)"): False,
        (r"\frac{", "2"): False,
        ("x" * 5000, "x" * 5000 + "y"): False,
        ("9^{9^{9^9}}", "9^{9^{9^8}}"): False,  # takes too long: not the same as far as anyone knows
    }
    assert dict(zip(pairs, math.same_answers(list(pairs)), strict=True)) == pairs


def test_numbers_are_compared_without_a_process():
    verifier = MathVerifier(workers=1)
    pairs = [(str(a), f"{b}.0") for a in range(60) for b in range(60)]
    start = time.process_time()
    assert verifier.same_answers(pairs) == [a == b for a in range(60) for b in range(60)]
    assert time.process_time() - start < 5
    assert verifier._isolated.workers.workers == []


class Characters:
    """A tokenizer whose tokens are characters."""

    chat_template = None

    def __call__(self, text, **options):
        return {"input_ids": [ord(c) for c in text]}

    def encode(self, text, **options):
        return [ord(c) for c in text]

    def decode(self, ids, **options):
        return "".join(map(chr, ids))


class Says:
    """An engine that gives the responses that it was told to."""

    end_ids = ()

    def __init__(self, policy, texts):
        self.policy, self.texts = policy, texts

    def generate(self, requests, sampling):
        ids = [[[ord(c) for c in t] for t in row] for row in self.texts]
        return [[Rollout(row_ids, [0.0] * len(row_ids), "stop") for row_ids in row] for row in ids]


def test_maj_at_k_of_equal_answers_wins_over_a_more_frequent_wrong_spelling():
    """0.5 and 1/2 have two votes each, 3 has three: by spelling 3 wins, by value the right answer does."""
    policy = SimpleNamespace(tokenizer=Characters())
    texts = [["Answer: 0.5", "Answer: 1/2", "Answer: 1/2", "Answer: 0.5", "Answer: 3", "Answer: 3", "Answer: 3"]]
    rewards = RewardSet([from_spec("math")])
    assert rewards.ballot is not None
    found = evaluate(
        policy, Says(policy, texts), [Problem("q", {"answer": "1/2"})], rewards, Sampling(16),
        reward_range=(0.0, 1.0), seed=0, k=7,
    )  # fmt: skip
    assert found.votes == [["0.5"] * 4 + ["3"] * 3]
    assert found.scored_PK.tolist() == [[1, 1, 1, 1, 0, 0, 0]]
    assert per_problem(found, [7])["majority@k"][7].tolist() == [1.0]
    by_spelling = Evaluation(
        found.score_PK,
        found.length_PK,
        found.truncated_PK,
        found.responses,
        [["0.5", "1/2", "1/2", "0.5", "3", "3", "3"]],
    )
    assert per_problem(by_spelling, [7])["majority@k"][7].tolist() == [0.0]
    assert np.isclose(per_problem(found, [1])["majority@k"][1][0], 4 / 7)


def test_rewards_without_a_ballot_leave_the_task_its_own_answers():
    policy = SimpleNamespace(tokenizer=Characters())

    def right(completions, **kwargs):
        return [1.0] * len(completions)

    found = evaluate(
        policy, Says(policy, [["ab", "cd"]]), [Problem("q", {})], RewardSet([right]), Sampling(4),
        reward_range=(0.0, 1.0), seed=0, k=2, answer_of=lambda text: text[:1],
    )  # fmt: skip
    assert found.votes == [["a", "c"]]
