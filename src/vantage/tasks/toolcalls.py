"""The embedded world `tools`: turn a request such as `add 7 figs, 5 more eggs, ship to oslo:` into tool calls, one a line.

    {"add":{"n":7,"of":"fig"}}
    {"add":{"n":12,"of":"egg"}}
    {"ship":{"to":"oslo"}}

An amount may be said in terms of the one before it, and a part without a verb goes on with the verb before. A response is
right if `vantage.verifiers.tools` finds these calls in it, in this order; the order of arguments does not matter.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vantage.rewards.functions import completion_text
from vantage.tasks.base import Criticised, Message, Problem
from vantage.tasks.critique import Critique
from vantage.tasks.critique_calls import criticise_calls
from vantage.tasks.embedded import EmbeddedTask, falls_outside
from vantage.verifiers.tools import ToolCallVerifier

VERBS = ("add", "drop", "keep", "sell")
ITEMS = ("bun", "cup", "egg", "fig", "hat", "jam", "nut", "pen", "pie", "tin")
PLACES = ("bern", "cork", "graz", "lima", "nice", "oslo", "pisa", "rome")
_VERIFIER = ToolCallVerifier(ordered=True, short=True)

Step = tuple[str, str, int]
"""A call: verb, item, number; or `ship`, place, 0."""


@dataclass(frozen=True)
class Split:
    """Kinds of requests, in equal shares: each is (parts with an amount, whether a place follows).

    Attributes:
        kinds: The kinds.
        largest: Largest first amount; amounts that build on it stay below ten times as much.
        max_new_tokens: About a third more than the longest solution and its end token take at one character a token.
    """

    kinds: tuple[tuple[int, bool], ...]
    largest: int
    max_new_tokens: int


SPLITS = {
    "": Split(kinds=((1, False), (1, True), (2, False), (2, True), (3, False)), largest=60, max_new_tokens=112),
    "larger": Split(kinds=((1, False), (1, True), (2, False), (2, True), (3, False)), largest=400, max_new_tokens=120),
    "more-calls": Split(kinds=((3, True), (4, False)), largest=60, max_new_tokens=150),
}


class ToolCalls(EmbeddedTask[Split], Criticised):
    """Requests to be turned into one to three tool calls; see the module.

    A request is held out or not by the calls that it asks for, in whatever words: a fifth of all *lists of calls* is
    held out. Training problem i depends on the split and on i only; kinds take turns.

    Args:
        split: `""`, `larger` (larger numbers) or `more-calls` (four calls).

    Raises:
        UserError: there is no such split.
    """

    world = "tools"
    version = "1"
    step_separator = "\n"
    alphabet = 'abcdefghijklmnopqrstuvwxyz0123456789{}":, \n'

    def __init__(self, split: str = "") -> None:
        super().__init__(tools_reward, SPLITS, split)

    def solution(self, problem: Problem) -> str | None:
        """The calls that the request asks for, one a line, or `None` if it is no problem of this world."""
        steps = follow(problem.prompt) if isinstance(problem.prompt, str) else None
        return None if steps is None else "\n".join(map(written, steps))

    def complaint(self, problem: Problem) -> str | None:
        """Whether the expected calls are those that the request asks for."""
        steps = follow(problem.prompt) if isinstance(problem.prompt, str) else None
        right = steps is not None and problem.columns.get("calls") == [call_of(step) for step in steps]
        return None if right else f"{problem.prompt!r} has the calls {problem.columns.get('calls')!r}"

    def demonstration(self, problem: Problem, slips: float, rng: random.Random) -> str | None:
        """The calls, each with a wrong number, item, place or verb with probability `slips`; the rest builds on it."""
        if not isinstance(problem.prompt, str):
            return None
        steps = follow(problem.prompt, lambda step: _slip(step, rng) if rng.random() < slips else step)
        return None if steps is None else "\n".join(map(written, steps))

    def steps(self, problem: Problem) -> int:
        """Calls that the request asks for."""
        return len(follow(str(problem.prompt)) or [])

    def critique(self, problem: Problem, partial: str, success: float) -> Critique | None:
        """See `vantage.tasks.critique_calls`."""
        steps = follow(problem.prompt) if isinstance(problem.prompt, str) else None
        if steps is None:
            return None
        parts = [(verb, *([] if verb == "ship" else [str(number)]), what) for verb, what, number in steps]
        return criticise_calls(parts, list(map(written, steps)), partial, self.step_rate(success))

    def draw(self, rng: random.Random, index: int, held_out: bool) -> Problem:
        """Draw requests until the calls lie on the wanted side."""
        parts, place = self.split.kinds[index % len(self.split.kinds)]
        while True:
            prompt = _request(rng, parts, place, self.split.largest)
            steps = follow(prompt) or []
            if is_held_out(steps) == held_out:
                return Problem(prompt=prompt, columns={"calls": [call_of(s) for s in steps]}, domain="tools")


def _request(rng: random.Random, parts: int, place: bool, largest: int) -> str:
    """A request with that many amounts of different items, none of them zero or beyond ten times the largest."""
    verb, amount, phrases = "", 0, []
    for item in rng.sample(ITEMS, parts):
        said = "" if verb and rng.random() < 0.5 else rng.choice([v for v in VERBS if v != verb])
        verb = said or verb
        words, amount = _amount(rng, amount, largest)
        phrases.append(" ".join(w for w in (said, words, item + "s") if w))
    if place:
        phrases.append(f"ship to {rng.choice(PLACES)}")
    return ", ".join(phrases) + ":"


def _amount(rng: random.Random, before: int, largest: int) -> tuple[str, int]:
    """How an amount is said, and what it is; the first amount can only be a number."""
    kind = rng.choice(("number", "more", "fewer", "twice", "as many")) if before else "number"
    if kind == "more":
        k = rng.randrange(1, 1 + largest // 2)
        return f"{k} more", before + k
    if kind == "fewer" and before > 1:
        k = rng.randrange(1, before)
        return f"{k} fewer", before - k
    if kind == "twice" and before <= 2 * largest:
        return "twice as many", 2 * before
    if kind == "as many":
        return "as many", before
    number = rng.randrange(2, largest + 1)
    return str(number), number


_PART = re.compile(
    rf"(?:({'|'.join(VERBS)}) )?(?:([0-9]+)( more| fewer)?|(as many|twice as many)) ({'|'.join(ITEMS)})s"
)
_PLACE = re.compile(rf"ship to ({'|'.join(PLACES)})")


def follow(prompt: str, put_down: Callable[[Step], Step] = lambda step: step) -> list[Step] | None:
    """The calls that a request asks for, or `None` if it is no request of this world.

    `put_down` may change a call before the next one is derived: an amount that builds on it builds on the changed one,
    and is 1 where that leaves nothing.
    """
    verb, amount, steps = "", 0, []
    parts = prompt.removesuffix(":").split(", ")
    for index, part in enumerate(parts):
        place = _PLACE.fullmatch(part)
        if place and index and index == len(parts) - 1:
            steps.append(put_down(("ship", place[1], 0)))
            continue
        match = _PART.fullmatch(part)
        if not match or not (match[1] or verb) or not (amount or (match[2] and not match[3])):
            return None
        verb = match[1] or verb
        _, _, amount = step = put_down((verb, match[5], _meant(amount, match[2], match[3], match[4])))
        steps.append(step)
    return steps if prompt.endswith(":") else None


def _meant(before: int, number: str | None, relation: str | None, multiple: str | None) -> int:
    if multiple:
        return before if multiple == "as many" else 2 * before
    k = int(number or 0)
    return {None: k, " more": before + k, " fewer": max(before - k, 1)}[relation]


def call_of(step: Step) -> dict[str, Any]:
    """The call as verifiers compare it: `{"name": "add", "arguments": {"n": 7, "of": "fig"}}`."""
    verb, what, number = step
    return {"name": verb, "arguments": {"to": what} if verb == "ship" else {"n": number, "of": what}}


def written(step: Step) -> str:
    """The call as a response has it: `{"add":{"n":7,"of":"fig"}}`."""
    verb, what, number = step
    return f'{{"{verb}":{{"to":"{what}"}}}}' if verb == "ship" else f'{{"{verb}":{{"n":{number},"of":"{what}"}}}}'


def _slip(step: Step, rng: random.Random) -> Step:
    """The call with a wrong place; or a wrong digit in its number (half the time), a wrong item or a wrong verb."""
    verb, what, number = step
    if verb == "ship":
        return verb, rng.choice([p for p in PLACES if p != what]), 0
    kind = rng.randrange(4)
    if kind == 0:
        return verb, rng.choice([i for i in ITEMS if i != what]), number
    if kind == 1:
        return rng.choice([v for v in VERBS if v != verb]), what, number
    digits = list(str(number))
    place = rng.randrange(len(digits))
    digits[place] = rng.choice([d for d in "0123456789" if d != digits[place] and (d != "0" or place)])
    return verb, what, int("".join(digits))


def is_held_out(steps: Sequence[Step]) -> bool:
    """Whether a list of calls belongs to the held-out side, whatever the words of the request."""
    identity = ";".join(f"{verb},{what},{number}" for verb, what, number in steps)
    return falls_outside(identity)


def tools_reward(
    completions: Sequence[str | list[Message]], calls: Sequence[Sequence[dict[str, Any]]], **kwargs: Any
) -> list[float | None]:
    """1 if the response holds the expected calls in their order and nothing else, else 0."""
    return [
        _VERIFIER.score(completion_text(completion), {"calls": expected})
        for completion, expected in zip(completions, calls, strict=True)
    ]
