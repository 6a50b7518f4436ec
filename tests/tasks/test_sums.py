"""The embedded world `sums`: its distribution, its solutions and its verifier."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from vantage.errors import UserError
from vantage.tasks.base import Problem
from vantage.tasks.sums import SPLITS, Sums, is_held_out, parse_prompt, prompt_of, sums_reward, trace


def terms_of(problem: Problem) -> list[int]:
    assert isinstance(problem.prompt, str)
    terms = parse_prompt(problem.prompt)
    assert terms is not None
    return terms


def test_the_trace_is_the_one_of_the_design() -> None:
    assert trace([17, 5, 88, 4]) == ["17+5=22", "22+88=110", "110+4=114", ">114"]
    problem = Problem(prompt="17+5+88+4=", columns={"answer": "114"})
    assert Sums().solution(problem) == "17+5=22\n22+88=110\n110+4=114\n>114"
    assert Sums().solution(Problem(prompt="what is 1+1?")) is None
    assert Sums().solution(Problem(prompt=[{"role": "user", "content": "1+1="}])) is None


@pytest.mark.parametrize("prompt", ["", "17=", "1+=", "+1+2=", "1+2", "١+2=", "1+2=\n"])
def test_what_is_no_sum_is_not_parsed(prompt: str) -> None:
    assert parse_prompt(prompt) is None


def test_a_training_problem_depends_on_split_and_index_only() -> None:
    one, other = Sums().train, Sums().train
    assert [one[i] for i in (5, 99_999, 0)] == [other[i] for i in (5, 99_999, 0)]
    assert one[-1] == one[99_999]
    assert [p.prompt for p in one[10:13]] == [one[i].prompt for i in (10, 11, 12)]
    with pytest.raises(IndexError):
        one[100_000]


def test_the_problems_are_these_and_stay_these() -> None:
    # A change here changes what every published number was measured on: raise Sums.version with it.
    assert [p.prompt for p in Sums().train[:3]] == TRAIN_START
    assert [p.prompt for p in Sums().evaluation(3)] == EVALUATION_START


@pytest.mark.parametrize(
    ("split", "terms", "lengths"),
    [("", {2, 3, 4, 5, 6}, {1, 2}), ("more-terms", {7, 8, 9}, {1, 2}), ("three-digits", {2, 3, 4, 5, 6}, {3})],
)
def test_terms_and_digits_come_in_equal_shares(split: str, terms: set[int], lengths: set[int]) -> None:
    task = Sums(split)
    n = 300
    for problems in (task.train[:n], task.evaluation(n)):
        counts = Counter(len(terms_of(problem)) for problem in problems)
        assert counts == dict.fromkeys(terms, n // len(terms))
        digits = Counter(len(str(term)) for problem in problems for term in terms_of(problem))
        assert set(digits) == lengths
        assert min(digits.values()) > 0.8 * max(digits.values())
        for problem in problems:
            assert problem.columns == {"answer": str(sum(terms_of(problem)))}
            assert problem.prompt == prompt_of(terms_of(problem))


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_problems_never_occur_in_training_in_any_order(split: str) -> None:
    task = Sums(split)
    evaluation = {tuple(sorted(terms_of(problem))) for problem in task.evaluation(500)}
    assert not evaluation & {tuple(sorted(terms_of(problem))) for problem in task.train[:5000]}
    assert is_held_out([5, 17]) == is_held_out([17, 5])
    share = sum(is_held_out([a, b]) for a in range(1, 100) for b in range(1, 100)) / 99**2
    assert share == pytest.approx(0.2, abs=0.02)


def test_evaluation_is_deterministic_grows_by_appending_and_has_no_duplicates() -> None:
    problems = Sums().evaluation(2000)
    assert Sums().evaluation(7) == problems[:7]
    assert len({problem.prompt for problem in problems}) == 2000
    assert Sums().evaluation(0) == []


@pytest.mark.parametrize("split", SPLITS)
def test_the_longest_solution_and_its_end_token_fit(split: str) -> None:
    shape = SPLITS[split]
    longest = [10 ** max(shape.digits) - 1] * max(shape.terms)
    length = len("\n".join(trace(longest))) + 1
    assert length == {"": 59, "more-terms": 92, "three-digits": 75}[split]
    assert length <= shape.max_new_tokens


@pytest.mark.parametrize("split", SPLITS)
def test_every_solution_is_rewarded_and_needs_the_alphabet_only(split: str) -> None:
    task = Sums(split)
    problems = task.train[:200]
    solutions = [str(task.solution(problem)) for problem in problems]
    assert sums_reward(solutions, [problem.columns["answer"] for problem in problems]) == [1.0] * 200
    text = "".join(solutions) + "".join(str(problem.prompt) for problem in problems)
    assert task.alphabet is not None
    assert set(text) == set(task.alphabet)


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        (">114", 1.0),
        ("17+5=22\n>9\n>114", 1.0),
        ("", 0.0),
        ("114", 0.0),
        (">", 0.0),
        (">114>", 0.0),
        ("> 114", 0.0),
        (">114\n", 0.0),
        (">0114", 0.0),
        (">+114", 0.0),
        (">114.0", 0.0),
        (">1_14", 0.0),
        (">１１４", 0.0),
        (">١١٤", 0.0),
        (">1\u200b14", 0.0),
        (">11\x004", 0.0),
        ("\ud800>114", 1.0),
        (">" * 1_000_000, 0.0),
        ("9" * 1_000_000, 0.0),
        (">" + "1" * 1_000_000, 0.0),
        ("x" * 1_000_000 + ">114", 1.0),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_the_verifier_wants_the_exact_final_answer(completion: str, reward: float) -> None:
    assert sums_reward([completion], ["114"]) == [reward]
    assert sums_reward([[{"role": "assistant", "content": completion}]], ["114"], other=[1]) == [reward]


def test_a_conversation_without_text_earns_nothing() -> None:
    nothing: Any = [[], [{"role": "assistant", "content": None}], [{"role": "assistant"}]]
    assert sums_reward(nothing, ["114"] * 3) == [0.0] * 3


def test_an_unknown_split_is_named_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match="sums has no split 'more-term', did you mean 'more-terms'"):
        Sums("more-term")
    with pytest.raises(UserError, match="sums has no split 'xyz'; it has: more-terms, three-digits"):
        Sums("xyz")


TRAIN_START = ["9+9=", "8+1+50=", "35+1+17+1="]
EVALUATION_START = ["52+2=", "5+86+27=", "7+1+4+31="]


def test_demonstrations_without_slips_are_the_solutions_and_slips_carry_on():
    task = Sums()
    for index in range(50):
        problem = task.train[index]
        assert task.demonstration(problem, 0.0, random.Random(index)) == task.solution(problem)
    wrong = [task.demonstration(task.train[i], 1.0, random.Random(i)) for i in range(50)]
    for index, text in enumerate(wrong):
        lines = text.split("\n")
        totals = [line.split("=")[1] for line in lines[:-1]]
        assert lines[-1] == f">{totals[-1]}"
        for line, total, following in zip(lines, totals, lines[1:-1]):
            left, right = line.split("=")[0].split("+")
            assert int(left) + int(right) != int(total)
            assert following.startswith(f"{total}+")
        assert len(text.split("\n")[0]) > 3, index


def test_the_share_of_slips_is_the_probability():
    task, slips, steps = Sums(), 0, 0
    for index in range(400):
        text = task.demonstration(task.train[index], 0.25, random.Random(index))
        for line in text.split("\n")[:-1]:
            left, total = line.split("=")
            steps += 1
            slips += sum(map(int, left.split("+"))) != int(total)
    assert abs(slips / steps - 0.25) < 0.04
