"""Which answers count as one in a majority vote? Those that a verifier holds for equal, such as `1/2` and `0.5`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Protocol

Vote = str | None


class Ballot(Protocol):
    """What a verifier has that compares answers, such as `math`."""

    def answer_of(self, text: str) -> Vote:
        """The answer that a response gives, None if it gives none."""
        ...

    def same_answers(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Of each pair of answers whether they are equal."""
        ...


def joined(
    votes: Sequence[Sequence[Vote]], same: Callable[[Sequence[tuple[str, str]]], Sequence[bool]]
) -> list[list[Vote]]:
    """Votes on each problem with equal answers in one spelling: the one that most responses have, else the first.

    Answers are taken in the order of their counts. Each joins the first one before it that is equal to it and has joined
    no other, so that the result is a partition even where `same` is not transitive. `same` is asked once, for all problems.
    """
    spellings = [list(dict(Counter(v for v in row if v is not None).most_common())) for row in votes]
    asked = list(dict.fromkeys(pair for names in spellings for pair in combinations(names, 2)))
    equal = {pair for pair, found in zip(asked, same(asked), strict=True) if found} if asked else set()
    result = []
    for row, names in zip(votes, spellings, strict=True):
        stands_for: dict[Vote, Vote] = {None: None}
        for name in names:
            heads = (head for head in names if stands_for.get(head) == head)
            stands_for[name] = next((head for head in heads if (head, name) in equal), name)
        result.append([stands_for[vote] for vote in row])
    return result
