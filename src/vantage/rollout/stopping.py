"""When is a response over? End tokens, limits, and stop strings that the newest token completes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vantage.rollout.engine import FinishReason

SPARE = 4
"""Tokens looked at beyond one for each byte of the longest stop string, for tokens that have no text."""


def ended(
    prefix_ids: Sequence[int], limit: int, end_ids: Sequence[int], stop: Sequence[str], tokenizer: Any
) -> FinishReason | None:
    """Why there is nothing to sample behind a prefix with room for `limit` more tokens; None if there is something.

    A stop string counts where the last token of the prefix completes it, as it would have ended a rollout there; one
    that lies further back did not end this response.
    """
    if prefix_ids and prefix_ids[-1] in end_ids:
        return "stop"
    if prefix_ids and stop:
        recent = list(prefix_ids[-window(stop) :])
        if completes(tokenizer, recent, len(recent) - 1, stop):
            return "stop"
    return "length" if limit <= 0 else None


def window(stop: Sequence[str]) -> int:
    """How many of the newest tokens can have a part in a stop string: a token has at least a byte of it."""
    return max(len(s.encode()) for s in stop) + SPARE


def completes(tokenizer: Any, ids: Sequence[int], known: int, stop: Sequence[str]) -> bool:
    """Whether a stop string ends behind the first `known` of these tokens."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True)
    if known == 0:
        return any(s in text for s in stop)
    old = tokenizer.decode(list(ids[:known]), skip_special_tokens=True)
    # A character whose bytes are cut by the boundary differs in the two texts, so it counts as new.
    before = next((i for i, (a, b) in enumerate(zip(old, text)) if a != b), min(len(old), len(text)))
    return any(text.find(s, max(0, before - len(s) + 1)) >= 0 for s in stop)


class StopWatch:
    """The newest response tokens of each row of a batch, watched for stop strings."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], prefixes: Sequence[Sequence[int]]) -> None:
        self.tokenizer, self.stop, self.window = tokenizer, tuple(stop), window(stop)
        self.recent = [list(p[-self.window :]) for p in prefixes]
        self.known = [len(r) for r in self.recent]

    def add(self, row: int, token: int) -> bool:
        """Whether this next token of a row completes a stop string."""
        recent = self.recent[row]
        recent.append(token)
        if len(recent) > self.window:
            del recent[0]
            self.known[row] = max(0, self.known[row] - 1)
        return completes(self.tokenizer, recent, self.known[row], self.stop)
