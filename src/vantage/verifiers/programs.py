"""Where in a response is the program? After the thinking, in the last fenced block."""

from __future__ import annotations

import textwrap

THOUGHT, THINKING = "</think>", "<think>"
PYTHON = frozenset({"python", "python3", "py", "py3"})


def find_program(text: str, whole_text: bool = False) -> str | None:
    """The program in a response, None if there is none.

    The last closed block that is marked as Python, else the last closed block; only after `</think>` where there is one,
    and nothing while a `<think>` is open. With `whole_text` a response without any block is itself the program.
    """
    answer = text.rpartition(THOUGHT)[2]
    if THINKING in answer:
        return None
    found = blocks(answer)
    python = [block for language, block in found if language in PYTHON]
    if python or found:
        return python[-1] if python else found[-1][1]
    return answer if whole_text and answer.strip() and "```" not in answer else None


def blocks(text: str) -> list[tuple[str, str]]:
    """All closed fenced blocks in order: language in lower case, content without the common indentation."""
    found: list[tuple[str, str]] = []
    fence, language, lines = 0, "", list[str]()
    for line in text.split("\n"):
        # By hand: a regular expression for this takes quadratic time on a line made for it.
        content = line.strip()
        information = content.lstrip("`")
        ticks = len(content) - len(information)
        is_fence = ticks >= 3 and "`" not in information
        if not fence:
            if is_fence:
                fence, language, lines = ticks, information.split(maxsplit=1)[0].lower() if information else "", []
        elif is_fence and ticks >= fence and not information:
            found.append((language, textwrap.dedent("\n".join(lines)) + "\n"))
            fence = 0
        else:
            lines.append(line)
    return found
