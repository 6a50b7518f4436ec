"""The contract of reward functions: how they are called, how they combine, and that TRL's run unchanged."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest

from vantage.errors import UserError
from vantage.rewards import Rewards, RewardSet, completion_text

NAN = math.nan
Score = Callable[..., Rewards]


def same(got: list[float], expected: list[float]) -> bool:
    return got == pytest.approx(expected, abs=0, rel=0, nan_ok=True)


# What a function is called with


def test_text_data_gives_strings_and_chat_data_gives_messages(score: Score) -> None:
    seen: list[Any] = []

    def f(completions: Any, **kwargs: Any) -> list[float]:
        seen.append(completions)
        return [0.0] * len(completions)

    score(f, ["a", "b"])
    score(f, ["a"], chat=True)
    assert seen == [["a", "b"], [[{"role": "assistant", "content": "a"}]]]


def test_columns_arrive_aligned_with_prompts_and_completions() -> None:
    def f(prompts: Any, completions: Any, answer: Any, **kwargs: Any) -> list[float]:
        assert set(kwargs) == {"completion_ids", "level", "trainer_state", "log_extra", "log_metric"}
        assert kwargs["completion_ids"] == [[5], [6], [7, 7], []]
        return [float(p + c == a) for p, c, a in zip(prompts, completions, answer, strict=True)]

    rewards = RewardSet([f])(
        prompts=["x", "x", "y", "y"],
        completions=["1", "2", "1", "2"],
        completion_ids=[[5], [6], [7, 7], []],
        columns={"answer": ["x1", "x1", "y2", "y2"], "level": [1, 1, 2, 2], "prompt": [0] * 4, "completion": [0] * 4},
    )
    assert rewards.problems == []
    assert rewards.total == [1.0, 0.0, 0.0, 1.0]
    assert rewards.components == {"f": [1.0, 0.0, 0.0, 1.0]}


def test_trainer_state_log_extra_and_log_metric_work_as_in_trl() -> None:
    def f(completions: Any, trainer_state: Any, log_extra: Any, log_metric: Any, **kwargs: Any) -> list[float]:
        log_extra("length", [len(c) for c in completions])
        log_metric("seen", 1)
        log_metric("seen", 4)
        return [trainer_state.global_step * 0.5 for _ in completions]

    rewards = RewardSet([f])(
        prompts=["q", "q"], completions=["a", "bb"], completion_ids=[[], []], columns={},
        trainer_state=SimpleNamespace(global_step=3),
    )  # fmt: skip
    assert rewards == Rewards([1.5, 1.5], {"f": [1.5, 1.5]}, {"length": [1, 2]}, {"seen": 2.5}, [])


def test_wrong_logs_are_reported_and_cost_nothing(score: Score) -> None:
    def f(completions: Any, log_extra: Any, log_metric: Any) -> list[float]:
        log_extra("short", [1])
        log_metric("bad", "high")
        log_metric("worse", NAN)
        return [1.0, 1.0]

    rewards = score(f, ["a", "b"])
    assert (rewards.total, rewards.extras, rewards.metrics) == ([1.0, 1.0], {}, {})
    assert len(rewards.problems) == 3


def test_functions_without_kwargs_get_what_they_name(score: Score) -> None:
    def f(completions: Any, answer: Any) -> list[float]:
        return [float(c == a) for c, a in zip(completions, answer, strict=True)]

    assert score(f, ["1", "2"], answer=["1", "1"], other=[0, 0]).total == [1.0, 0.0]


def test_a_wrapper_gets_everything_that_the_wrapper_takes(score: Score) -> None:
    def inner(text: str, gold: str) -> float:
        return float(text == gold)

    @functools.wraps(inner)
    def wrapper(completions: Any, answer: Any, **kwargs: Any) -> list[float]:
        return [inner(c, a) for c, a in zip(completions, answer, strict=True)]

    assert score(wrapper, ["1", "2"], answer=["1", "1"]).total == [1.0, 0.0]


def test_a_function_that_empties_its_arguments_does_not_harm_the_next(score: Score) -> None:
    def greedy(completions: Any, answer: Any) -> list[float]:
        found = [float(completions.pop(0) == answer.pop(0)) for _ in range(2)]
        completions.append("junk")
        return found

    assert score([greedy, greedy], ["1", "2"], answer=["1", "1"]).total == [2.0, 0.0]


def test_a_missing_column_is_the_users_mistake_and_named_before_any_call(score: Score) -> None:
    def f(completions: Any, solution: Any) -> list[float]:
        raise AssertionError

    with pytest.raises(UserError, match=r"'f' needs the column 'solution'; the data has answer, solutions, did you"):
        RewardSet([f]).check(["prompt", "answer", "solutions"])
    with pytest.raises(UserError, match="needs the column 'solution'"):
        score(f, ["a"], answer=["1"])
    RewardSet([f]).check(["solution"])


def test_lists_of_different_lengths_are_refused(score: Score) -> None:
    with pytest.raises(ValueError, match="answer has 1 entries for 2 prompts"):
        score(lambda completions: [0.0], ["a", "b"], answer=["1"])


def test_an_empty_batch_calls_nothing(score: Score) -> None:
    def f(completions: Any) -> list[float]:
        raise AssertionError

    assert score(f, []) == Rewards([], {"f": []})


# None, weights, names


def test_none_does_not_apply_and_all_none_is_unscorable(score: Score) -> None:
    def odd(completions: Any) -> list[float | None]:
        return [1.0, None, None]

    def even(completions: Any) -> list[float | None]:
        return [0.5, 0.25, None]

    rewards = score([odd, even], ["a", "b", "c"], weights=[2.0, 4.0])
    assert same(rewards.total, [4.0, 1.0, NAN])
    assert same(rewards.components["odd"], [1.0, NAN, NAN])
    assert rewards.problems == []


def test_weight_zero_is_only_logged(score: Score) -> None:
    def broken(completions: Any) -> list[float]:
        return [NAN, 7.0, 7.0]

    def real(completions: Any) -> list[float | None]:
        return [1.0, 0.0, None]

    rewards = score([broken, real], ["a", "b", "c"], weights=[0, 1])
    assert same(rewards.total, [1.0, 0.0, NAN])
    assert same(rewards.components["broken"], [NAN, 7.0, 7.0])


def test_names_come_from_functions_partials_and_classes_and_are_unique(score: Score) -> None:
    def f(completions: Any, scale: float = 1.0) -> list[float]:
        return [scale]

    class Judge:
        def __call__(self, completions: Any) -> list[float]:
            return [0.0]

    rewards = RewardSet([f, functools.partial(f, scale=2.0), Judge(), Judge().__call__])
    assert rewards.names == ("f", "f_2", "Judge", "__call__")
    assert score([f, functools.partial(f, scale=2.0)], ["a"]).components == {"f": [1.0], "f_2": [2.0]}


@pytest.mark.parametrize(
    ("functions", "weights", "message"),
    [
        ([], None, "no reward function"),
        ([len, len], [1.0], r"1 weights for 2 reward functions \(len, len_2\)"),
        ([len], [NAN], "must be finite"),
        ([len], [0.0], "one of them not 0"),
        (["accuracy"], None, "entry 0 is a str"),
        ([Fraction], None, "the class Fraction, not an instance"),
    ],
)
def test_what_can_not_be_a_reward_set_is_refused(functions: Any, weights: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RewardSet(functions, weights)


def test_a_torch_model_is_refused_with_advice() -> None:
    import torch

    with pytest.raises(UserError, match=r"the model Linear \(wrap it"):
        RewardSet([torch.nn.Linear(1, 1)])


# TRL's own functions


def test_trl_accuracy_reward_and_think_format_reward_run_unchanged_on_chat_data(score: Score) -> None:
    from trl.rewards import accuracy_reward, think_format_reward

    rewards = score(
        [accuracy_reward, think_format_reward],
        [r"<think>half</think> \boxed{\frac{1}{2}}", r"\boxed{3}", r"\boxed{2}"],
        weights=[1.0, 0.5],
        chat=True,
        solution=[r"\frac{1}{2}", r"\boxed{4}", ""],
    )
    assert rewards.problems == []
    assert same(rewards.components["accuracy_reward"], [1.0, 0.0, NAN])  # no solution can be read: None
    assert rewards.components["think_format_reward"] == [1.0, 0.0, 0.0]
    assert rewards.total == [1.5, 0.0, 0.0]
    assert rewards.extras["answer_parsed"][2] == "[skipped]"


def test_completion_text_reads_both_forms() -> None:
    assert completion_text("a") == "a"
    assert completion_text([{"role": "assistant", "content": "b"}]) == "b"
    assert completion_text([]) == ""
