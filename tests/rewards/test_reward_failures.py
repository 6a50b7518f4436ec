"""Broken and asynchronous reward functions: a failure costs samples, never the run."""

from __future__ import annotations

import asyncio
import functools
import math
import threading
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from vantage.rewards import Rewards, RewardSet

NAN = math.nan
Score = Callable[..., Rewards]


def same(got: list[float], expected: list[float]) -> bool:
    return got == pytest.approx(expected, abs=0, rel=0, nan_ok=True)


# Failures


def test_a_failed_component_makes_the_sample_unscorable(score: Score) -> None:
    def bad(completions: Any) -> list[Any]:
        return [NAN, math.inf, "1", 10**400, [1.0], True]

    def good(completions: Any) -> list[float]:
        return [1.0] * len(completions)

    rewards = score([bad, good], list("abcdef"))
    assert same(rewards.total, [NAN, NAN, NAN, NAN, NAN, 2.0])
    assert rewards.components["good"] == [1.0] * 6
    assert rewards.problems[0] == "reward function 'bad' returned nan: 1 of 6 samples not scored"
    assert rewards.problems[-1] == "reward function 'bad' had 2 more kinds of problems"


def test_scalars_of_numpy_and_torch_are_numbers(score: Score) -> None:
    import numpy as np
    import torch

    values = [np.float32(0.5), np.int64(2), torch.tensor(0.25), torch.tensor([4.0]), Fraction(1, 8), True]
    assert score(lambda completions: values, list("abcdef")).total == [0.5, 2.0, 0.25, 4.0, 0.125, 1.0]
    assert score(lambda completions: np.array([1.0, 2.0]), ["a", "b"]).total == [1.0, 2.0]
    assert score(lambda completions: torch.tensor([1.0, 2.0]), ["a", "b"]).total == [1.0, 2.0]


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        ([1.0], "returned 1 rewards for 2 completions"),
        ([1.0] * 3, "returned 3 rewards for 2 completions"),
        (1.0, "returned float instead of a list of numbers"),
        (None, "returned NoneType instead of a list of numbers"),
        ("11", "returned str instead of a list of numbers"),
        ({"a": 1, "b": 2}, "returned dict instead of a list of numbers"),
    ],
)
def test_a_result_of_another_shape_makes_the_whole_call_unscorable(score: Score, returned: Any, problem: str) -> None:
    calls = []

    def f(completions: Any) -> Any:
        calls.append(len(completions))
        return returned

    rewards = score(f, ["a", "b"])
    assert same(rewards.total, [NAN, NAN])
    assert rewards.problems == [f"reward function 'f' {problem}: 2 of 2 samples not scored"]
    assert calls == [2]


def test_one_bad_completion_costs_one_sample(score: Score) -> None:
    def f(completions: Any, answer: Any, log_extra: Any, log_metric: Any) -> list[float]:
        log_metric("calls", len(completions))
        log_extra("parsed", [int(c) for c in completions])
        return [float(int(c) == a) for c, a in zip(completions, answer, strict=True)]

    rewards = score(f, ["1", "x", "3"], answer=[1, 2, 4])
    assert same(rewards.total, [1.0, NAN, 0.0])
    assert rewards.extras == {"parsed": [1, None, 3]}
    assert rewards.metrics == {"calls": 1.0}  # what the abandoned calls logged is gone
    error = "ValueError: invalid literal for int() with base 10: 'x'"
    assert rewards.problems == [
        f"reward function 'f' raised {error}: 1 of 3 samples not scored",
        f"reward function 'f' raised {error} on the whole batch and was called sample by sample",
    ]


def test_a_function_that_always_raises_is_given_up_after_a_few_samples(score: Score) -> None:
    calls = []

    def f(completions: Any) -> list[float]:
        calls.append(len(completions))
        raise RuntimeError("down")

    rewards = score(f, ["a"] * 100)
    assert all(math.isnan(total) for total in rewards.total)
    assert calls == [100] + [1] * 16
    assert rewards.problems == ["reward function 'f' raised RuntimeError: down: 100 of 100 samples not scored"]


def test_an_interrupt_is_not_swallowed(score: Score) -> None:
    def f(completions: Any) -> list[float]:
        raise KeyboardInterrupt

    async def g(completions: Any) -> list[float]:
        raise SystemExit(3)

    with pytest.raises(KeyboardInterrupt):
        score(f, ["a"])
    with pytest.raises(SystemExit):
        score(g, ["a"])


# Asynchronous functions


class AsyncJudge:
    async def __call__(self, completions: Any, **kwargs: Any) -> list[float]:
        await asyncio.sleep(0)
        return [2.0] * len(completions)


def test_coroutine_functions_objects_and_partials_are_awaited(score: Score) -> None:
    async def f(completions: Any, scale: float = 1.0, **kwargs: Any) -> list[float]:
        return [scale] * len(completions)

    rewards = score([f, AsyncJudge(), functools.partial(f, scale=4.0), lambda **kw: f(**kw, scale=8.0)], ["a", "b"])
    assert rewards.components == {
        "f": [1.0, 1.0], "AsyncJudge": [2.0, 2.0], "f_2": [4.0, 4.0], "<lambda>": [8.0, 8.0]
    }  # fmt: skip
    assert rewards.total == [15.0, 15.0]


def test_asynchronous_functions_run_side_by_side_on_one_loop_that_lasts() -> None:
    loops = []
    first, second = asyncio.Event(), asyncio.Event()

    async def ping(completions: Any) -> list[float]:
        loops.append(asyncio.get_running_loop())
        first.set()
        await asyncio.wait_for(second.wait(), 10)  # returns only if `pong` runs meanwhile
        return [1.0]

    async def pong(completions: Any) -> list[float]:
        await asyncio.wait_for(first.wait(), 10)
        second.set()
        return [1.0]

    rewards = RewardSet([ping, pong])
    for _ in range(2):
        call = rewards(prompts=["q"], completions=["a"], completion_ids=[[]], columns={})
        assert call.total == [2.0]
    assert loops[0] is loops[1]


def test_it_works_inside_a_running_loop(score: Score) -> None:
    async def caller() -> Rewards:
        return score(AsyncJudge(), ["a"])

    assert asyncio.run(caller()).total == [2.0]


def test_asynchronous_failures_are_failures_like_others(score: Score) -> None:
    async def f(completions: Any) -> list[float]:
        if "bad" in completions:
            raise ValueError("bad one")
        return [1.0] * len(completions)

    async def cancelled(completions: Any) -> list[float]:
        raise asyncio.CancelledError

    assert same(score(f, ["a", "bad", "c"]).total, [1.0, NAN, 1.0])
    assert same(score(cancelled, ["a", "b"]).total, [NAN, NAN])


def test_the_loops_thread_ends_with_its_owner() -> None:
    rewards = RewardSet([AsyncJudge()])
    rewards(prompts=["q"], completions=["a"], completion_ids=[[]], columns={})
    threads = [thread for thread in threading.enumerate() if thread.name == "vantage-rewards"]
    loop = rewards._loop
    assert loop is not None
    mine = [thread for thread in threads if thread.ident == loop.gather([_thread_id()])[0]]
    del rewards, loop
    mine[0].join(timeout=10)
    assert not mine[0].is_alive()


async def _thread_id() -> int:
    return threading.get_ident()
