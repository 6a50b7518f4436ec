"""Which states does the critic judge? The segment starts of a step's responses, each once, with the outcomes that followed.

U different states of B responses. States are pooled within a prompt group only: siblings lie on one process, so what is
pooled does not depend on how many processes there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vantage.genac.prompt import StateView
from vantage.montecarlo.cache import digest
from vantage.segments import Segments, UniqueStates, unique_states
from vantage.tasks.base import Prompt


@dataclass(frozen=True)
class States:
    """The states of a step's responses."""

    segments: list[Segments]
    unique: UniqueStates
    views: list[StateView]
    """What the critic sees of each state [U]."""
    groups: list[int]
    """The prompt group of each state [U]."""
    final_action: bool
    """Whether the last state of every response is the one before its last token, and no segment start."""

    def __len__(self) -> int:
        return len(self.views)

    def starts(self) -> list[tuple[int, ...]]:
        """The tokens before which each response has its states, in the order of `unique.index`."""
        return [(_with_last(cut) if self.final_action else cut).starts for cut in self.segments]

    def names(self) -> list[int]:
        """64 bits a state [U], from its tokens and its group alone: what its draws depend on."""
        rows = zip(self.groups, self.unique.prompt_ids, self.unique.prefix_ids)
        return [int.from_bytes(digest([[group], prompt, list(prefix)])[:8], "big") for group, prompt, prefix in rows]

    def targets(self, share_B: Sequence[float]) -> list[float]:
        """Mean outcome of the responses that pass through each state [U], as a share of the reward range in [0, 1].

        NaN outcomes (the verifier had nothing to say) are left out; a state with nothing else has the target NaN.
        """
        found = []
        for places in self.unique.places:
            known = [share_B[b] for b, _ in places if math.isfinite(share_B[b])]
            found.append(math.fsum(known) / len(known) if known else math.nan)
        return found


def states_of(
    prompts: Sequence[Prompt],
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    segments: Sequence[Segments],
    groups: Sequence[int],
    tokenizer: Any,
    limit: int,
    final_action: bool = False,
) -> States:
    """The states before each segment, and with `final_action` the one before each response's last token.

    `prompts` are the problems as people read them; prefixes are decoded from the original ids, special tokens kept.
    """
    cuts = [_with_last(cut) for cut in segments] if final_action else list(segments)
    unique = unique_states(prompt_ids, response_ids, cuts, kinds=list(groups))
    first = [places[0][0] for places in unique.places]
    texts = {prefix: _decoded(tokenizer, prefix) for prefix in set(unique.prefix_ids)}
    views = [
        StateView(problem_text(prompts[b]), texts[prefix], len(prefix), limit)
        for b, prefix in zip(first, unique.prefix_ids)
    ]
    return States(list(segments), unique, views, [groups[b] for b in first], final_action)


def _with_last(cut: Segments) -> Segments:
    """One more start, at the last token, where there is none."""
    if not cut.length or cut.starts[-1] == cut.length - 1:
        return cut
    return Segments((*cut.starts, cut.length - 1), cut.length)


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def problem_text(prompt: Prompt) -> str:
    """A problem as the critic reads it: plain text as it stands, a conversation as its turns."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
