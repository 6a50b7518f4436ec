"""Where does a step of a response begin? Responses cut into segments, and the states at which segments start.

A response of n tokens has segment starts 0 = t_0 < t_1 < … < t_{S−1} < n. Segment k is the tokens t_k … t_{k+1} − 1, the
last one ends with the response. The state of segment k is the prompt with the tokens *before* t_k: the action that the
segment is can not be read from it, so a value taken there is a baseline of that action. State 0 is the prompt.
`vantage.segment_credit` turns values of such states into advantages of tokens.

Starts are found in this order: cuts of the chosen kind; cuts that leave less than `min_segment_tokens` are dropped, the
segment goes on, and a short tail joins the segment before it; segments above `max_segment_tokens` are cut into near-equal
parts; of more than `max_segments` starts, that many are kept, evenly over their numbers and the first one among them. The
segments of a start that goes join the one before it (and may then exceed `max_segment_tokens`). Text is looked at to find
cuts, never tokenised again.

What a state holds never depends on what follows it. *Which* states there are can: a run of separators may go on, an
unlikely token starts a segment, merging and thinning look at the whole response. So a token has a hand in which of two
baselines it gets, the state right before it or an earlier one. Only `fixed` with the smallest segment 1 and no other
limit is free of this; a test of unbiasedness must use that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

from vantage.errors import UserError

if TYPE_CHECKING:
    from vantage.tasks.base import Task

Ids = Sequence[int]
Kind = Literal["separator", "newline", "fixed", "lowprob"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Splitter:
    """How responses are cut. The defaults suit long responses; `of_task` takes a task's own step into account."""

    kind: Kind = "separator"
    """`separator`: behind every run of the separator text; `newline`: behind every run of newlines; `fixed`: every
    `tokens` tokens; `lowprob`: before tokens that were unlikely when they were sampled."""
    separator: str = "\n"
    tokens: int = 512
    """Tokens of a segment of `fixed`."""
    threshold: float = 0.2
    """`lowprob` cuts before tokens of a probability below this."""
    lowest: int | None = None
    """With a number, `lowprob` cuts before that many of the least likely tokens instead."""
    min_segment_tokens: int = 32
    max_segment_tokens: int | None = 512
    max_segments: int | None = 16
    flags: str = field(default="splitter ", compare=False, repr=False)
    """What messages put before the name of an option, such as `--genac.`."""

    def __post_init__(self) -> None:
        """Raises `UserError` for an option outside of its range."""
        if self.kind not in KINDS:
            raise UserError(f"{self.flags}kind: there is no {self.kind!r}; use one of {', '.join(KINDS)}")
        for name in ("tokens", "lowest", "min_segment_tokens", "max_segment_tokens", "max_segments"):
            given = getattr(self, name)
            if given is not None and given < 1:
                raise UserError(f"{self.flags}{name.replace('_', '-')}: {given} is out of range; it must be 1 or more")
        if not self.separator:
            raise UserError(f"{self.flags}separator: it is empty; give the text that ends a step")
        if not 0 < self.threshold < 1:
            raise UserError(f"{self.flags}threshold: {self.threshold} is out of range; it must lie between 0 and 1")
        if self.max_segment_tokens is not None and self.max_segment_tokens < self.min_segment_tokens:
            raise UserError(
                f"{self.flags}max-segment-tokens: {self.max_segment_tokens} is below the smallest segment of "
                f"{self.min_segment_tokens} tokens; raise it or lower {self.flags}min-segment-tokens"
            )

    @classmethod
    def of_task(cls, task: Task, **options: Any) -> Splitter:
        """A splitter with the task's own separator and smallest segment where `options` do not say otherwise."""
        own: dict[str, Any] = {"separator": task.step_separator, "min_segment_tokens": task.min_segment_tokens}
        return cls(**(own | options))


@dataclass(frozen=True)
class Segments:
    """The segments of one response: `starts`, ascending from 0, and the response's `length`, both in tokens.

    A response without tokens has no segments. Raises `ValueError` for starts that are not so.
    """

    starts: tuple[int, ...]
    length: int

    def __post_init__(self) -> None:
        bounds = [*self.starts, self.length]
        right = self.starts[:1] == (0,) if self.length else not self.starts
        if not right or any(a >= b for a, b in pairwise(bounds)):
            raise ValueError(f"{self.starts} are no segment starts of {self.length} tokens")

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def ends(self) -> tuple[int, ...]:
        """For each segment the token behind its last."""
        return (*self.starts[1:], self.length) if self.starts else ()

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each segment, at least 1."""
        return tuple(b - a for a, b in zip(self.starts, self.ends))

    def pieces(self, ids: Ids) -> list[list[int]]:
        """Token ids of each segment; joined they are the response."""
        return [list(ids[a:b]) for a, b in zip(self.starts, self.ends)]

    def prefix(self, ids: Ids, k: int) -> tuple[int, ...]:
        """Tokens of the response before segment k: its state."""
        return tuple(ids[: self.starts[k]])

    def numbers(self) -> list[int]:
        """For each token the number of its segment."""
        return [k for k, count in enumerate(self.lengths) for _ in range(count)]


def split(ids: Ids, splitter: Splitter, tokenizer: Any = None, logp: Sequence[float] | None = None) -> Segments:
    """Cut one response; see the module for the order of things.

    `tokenizer` is needed by the kinds that look at text. `logp` has each token's log-prob at the sampling temperature (of
    at least as many tokens as the response) and is needed by `lowprob`. A token that straddles a cut stays on its left;
    special tokens have no text, so an end token belongs to the last segment.
    """
    n = len(ids)
    if splitter.kind == "fixed":
        cuts = list(range(splitter.tokens, n, splitter.tokens))
    elif splitter.kind == "lowprob":
        if logp is None:
            raise ValueError("splitter lowprob needs the tokens' log-probs")
        cuts = low_probability_cuts(logp[:n], splitter.threshold, splitter.lowest)
    else:
        separator = "\n" if splitter.kind == "newline" else splitter.separator
        cuts = separator_cuts(token_texts(ids, tokenizer), separator)
    starts = [0] * (n > 0) + cuts
    starts = merge_short(starts, n, splitter.min_segment_tokens)
    if splitter.max_segment_tokens is not None:
        starts = split_long(starts, n, splitter.max_segment_tokens)
    if splitter.max_segments is not None:
        starts = thin(starts, splitter.max_segments)
    return Segments(tuple(starts), n)


def token_texts(ids: Ids, tokenizer: Any) -> list[str]:
    """The text that each token adds to the response; joined they are its decoded text, special tokens left out.

    Tokens are decoded one by one where that gives the same text. It does not where several tokens share a character or a
    token's text depends on its neighbour; then each is what decoding with one more token adds, and a shared character
    counts to the token that completes it.
    """

    def text(some: Ids) -> str:
        decoded: str = tokenizer.decode(list(some), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return decoded

    alone = {token: text([token]) for token in set(ids)}
    found = [alone[token] for token in ids]
    if "".join(found) == text(ids):
        return found
    found, anchor, done = [], 0, 0  # tokens anchor … done − 1 are decoded again as context, which is a few tokens only
    for i in range(len(ids)):
        before, now = text(ids[anchor:done]), text(ids[anchor : i + 1])
        whole = not now.endswith("�") or i == len(ids) - 1
        found.append(now[len(before) :] if whole else "")
        if whole:
            anchor, done = done, i + 1
    return found


def separator_cuts(texts: Sequence[str], separator: str) -> list[int]:
    """Tokens that are first to begin at or behind the end of a run of separators; none at the text's own end."""
    text = "".join(texts)
    cuts = [m.end() for m in re.finditer(f"(?:{re.escape(separator)})+", text) if m.end() < len(text)]
    found: list[int] = []
    offset = 0
    for i, piece in enumerate(texts):
        if cuts and offset >= cuts[0]:
            found.append(i)
            while cuts and offset >= cuts[0]:
                cuts.pop(0)
        offset += len(piece)
    return found


def low_probability_cuts(logp: Sequence[float], threshold: float, lowest: int | None) -> list[int]:
    """Tokens with a probability below `threshold`, or the `lowest` least likely ones (the earlier of equals).

    The first token is none of them, as a segment starts there anyway.
    """
    if lowest is None:
        limit = math.log(threshold)
        return [i for i, value in enumerate(logp) if i and value < limit]
    ranked = sorted(range(1, len(logp)), key=lambda i: (logp[i], i))
    return sorted(ranked[: max(lowest, 0)])


def merge_short(starts: Sequence[int], n: int, smallest: int) -> list[int]:
    """Drop starts less than `smallest` tokens behind the last one that stays, and a last one with a shorter tail."""
    found = list(starts[:1])
    for start in starts[1:]:
        if start - found[-1] >= smallest:
            found.append(start)
    if len(found) > 1 and n - found[-1] < smallest:
        found.pop()
    return found


def split_long(starts: Sequence[int], n: int, largest: int) -> list[int]:
    """Cut segments above `largest` tokens into the fewest parts that are not, as equal as can be."""
    found = []
    for a, b in pairwise([*starts, n]):
        parts = math.ceil((b - a) / largest)
        found += [a + i * (b - a) // parts for i in range(parts)]
    return found


def thin(starts: Sequence[int], most: int) -> list[int]:
    """At most that many starts, evenly over their numbers, the first one always among them."""
    count = len(starts)
    return list(starts) if count <= most else [starts[i * count // most] for i in range(most)]


@dataclass(frozen=True)
class UniqueStates:
    """The different states among those of B responses, U of them, in order of first appearance."""

    prompt_ids: list[list[int]]
    prefix_ids: list[tuple[int, ...]]
    places: list[list[tuple[int, int]]]
    """For each state where it occurs, as (response, segment)."""
    index: list[list[int]]
    """For each response and segment the number of its state."""

    def __len__(self) -> int:
        return len(self.places)

    @property
    def multiplicity(self) -> list[int]:
        """How often each state occurs."""
        return [len(found) for found in self.places]

    def spread(self, value_U: Sequence[float]) -> list[list[float]]:
        """One number a state, given back to every response and segment."""
        return [[value_U[u] for u in row] for row in self.index]

    def pooled(self, value_B: Sequence[float]) -> list[float]:
        """For each state the mean of a response's number over all its places, such as the target of a shared prompt.

        For the squared error of a prediction v, E(r − v)² = (mean r − v)² + Var r: pooling leaves the expected gradient
        as it is and takes variance out of it.
        """
        return [math.fsum(value_B[b] for b, _ in found) / len(found) for found in self.places]


def unique_states(
    prompt_ids: Sequence[Ids],
    response_ids: Sequence[Ids],
    segments: Sequence[Segments],
    kinds: Sequence[Hashable] | None = None,
) -> UniqueStates:
    """Pool states with the same token ids of prompt and prefix, both compared apart.

    With `kinds`, one a response, only states of responses of the same kind are pooled: for verifiers that judge equal
    prompts differently.
    """
    known: dict[Hashable, int] = {}
    found = UniqueStates([], [], [], [])
    for b, (prompt, response, cut) in enumerate(zip(prompt_ids, response_ids, segments, strict=True)):
        row = []
        for k in range(len(cut)):
            prefix = cut.prefix(response, k)
            name = (None if kinds is None else kinds[b], tuple(prompt), prefix)
            u = known.setdefault(name, len(known))
            if u == len(found.places):
                found.prompt_ids.append(list(prompt))
                found.prefix_ids.append(prefix)
                found.places.append([])
            found.places[u].append((b, k))
            row.append(u)
        found.index.append(row)
    return found
