"""What of a response is the answer, and what was thinking?"""

from __future__ import annotations

OPENING, CLOSING = "<think>", "</think>"


def after_thinking(text: str) -> str:
    """The text after the last closing tag; nothing where thinking was opened and never closed."""
    answer = text.rpartition(CLOSING)[2]
    return "" if answer.lstrip().startswith(OPENING) else answer
