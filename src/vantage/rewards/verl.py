"""verl's reward files under our contract: `compute_score(data_source, solution_str, ground_truth, extra_info=None)`.

verl calls it once a sample, with keywords, and takes a number or a dict with `score`, whose other entries it logs. Rows
are verl's parquet rows: `data_source`, `reward_model` (a dict with `ground_truth`, or a flat column), `extra_info`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from vantage.plugins import load_object
from vantage.rewards.calls import as_number
from vantage.rewards.functions import RewardFunction, completion_text

COMPUTE_SCORE = "compute_score"


def is_verl_function(function: Any) -> bool:
    """Whether a function has verl's parameter `solution_str`, which TRL's reward functions never have."""
    try:
        return "solution_str" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def from_verl_reward(
    source: str | Callable[..., Any], name: str = COMPUTE_SCORE, **reward_kwargs: Any
) -> RewardFunction:
    """A reward function from verl's: a file's `name`, or a function itself.

    `reward_kwargs` go into every call, as verl's `reward_kwargs` do. A sample on which the function raises is unscorable,
    the others are not. Numeric extras of a dict are logged as metrics (`custom/NAME`), all of them as sample columns.
    Raises `UserError` if the file or the function is not there.
    """
    function = load_object(f"{source}:{name}", "--reward") if isinstance(source, str) else source
    accepted = _accepted(function)

    def call(index: int, texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> Any:
        keywords = {**row_of(index, columns), "solution_str": texts[index], **reward_kwargs}
        return function(**{k: v for k, v in keywords.items() if accepted is None or k in accepted})

    def finish(found: Sequence[Any], log_extra: Any, log_metric: Any) -> list[Any]:
        _log([f if isinstance(f, Mapping) else {} for f in found], log_extra, log_metric)
        return [score_of(f) for f in found]

    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004

        async def scored_async(
            completions: Sequence[Any], log_extra: Any = None, log_metric: Any = None, **columns: Any
        ) -> list[Any]:
            import asyncio  # slow to import and seldom needed

            texts = [completion_text(c) for c in completions]
            waiting = [_caught_async(call(i, texts, columns)) for i in range(len(texts))]
            return finish(await asyncio.gather(*waiting), log_extra, log_metric)

        scored_async.__name__ = str(getattr(function, "__name__", name))
        return scored_async

    def scored(completions: Sequence[Any], log_extra: Any = None, log_metric: Any = None, **columns: Any) -> list[Any]:
        texts = [completion_text(c) for c in completions]
        return finish([_caught(call, i, texts, columns) for i in range(len(texts))], log_extra, log_metric)

    scored.__name__ = str(getattr(function, "__name__", name))
    return scored


def row_of(index: int, columns: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """verl's arguments of one sample, out of our columns."""

    def at(name: str) -> Any:
        return columns[name][index] if name in columns else None

    model = at("reward_model")
    truth = model.get("ground_truth") if isinstance(model, Mapping) else at("ground_truth")
    info = at("extra_info")
    return {
        "data_source": at("data_source"),
        "ground_truth": at("answer") if truth is None else truth,
        "extra_info": dict(info) if isinstance(info, Mapping) else {},
    }


def score_of(found: Any) -> Any:
    """The number in what `compute_score` returned; NaN (unscorable) for an exception or a dict without `score`."""
    if isinstance(found, Mapping):
        found = found.get("score", math.nan)
    return math.nan if isinstance(found, Exception) else found


def _caught(call: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except Exception as error:
        return error


async def _caught_async(waiting: Awaitable[Any]) -> Any:
    try:
        return await waiting
    except Exception as error:
        return error


def _log(found: Sequence[Mapping[str, Any]], log_extra: Any, log_metric: Any) -> None:
    """Everything in the dicts but the score: a column each, and the mean of the numeric ones."""
    for name in dict.fromkeys(key for row in found for key in row if key != "score"):
        values = [row.get(name) for row in found]
        if log_extra is not None:
            log_extra(str(name), values)
        numbers = [number for number, reason in map(as_number, values) if reason is None and not math.isnan(number)]
        if log_metric is not None and numbers:
            log_metric(str(name), sum(numbers) / len(numbers))


def _accepted(function: Callable[..., Any]) -> frozenset[str] | None:
    """The keywords that a function names; None if it takes any."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters)
