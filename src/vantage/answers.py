r"""What is the final answer of a response? Text after thinking, `\boxed{}`, `<answer>`, `Answer:` and `####`; spellings.

Nothing here judges an answer; that is a verifier's work. Majority votes need answers in one spelling, datasets need them
taken out of worked solutions.
"""

from __future__ import annotations

import re

THINK_END = "</think>"
LONGEST_NUMBER = 100
_BRACES = re.compile(r"\\f?boxed\s*\{|\\.|[{}]", re.DOTALL)
_HEAD = re.compile(r"[\s>*#]*(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*(?:\*\*)?\s*[:=](?:\*\*)?", re.IGNORECASE)
_HEAD_LENGTH = 60
_NUMBER = re.compile(r"([-+]?)(\d+(?:,\d{3})*)?(?:\.(\d*))?")


def boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{…}` with balanced braces, the inner one of nested ones; None if there is none."""
    opened: list[int] = []  # where the content of every open brace begins; negative for one that is no box
    last: tuple[int, int] | None = None
    for found in _BRACES.finditer(text):
        token = found[0]
        if token == "}":
            begin = opened.pop() if opened else -1
            if begin >= 0 and (last is None or begin > last[0]):
                last = (begin, found.start())
        elif token == "{":
            opened.append(-1)
        elif "boxed" in token:
            opened.append(found.end())
    return text[slice(*last)].strip() if last else None


def tagged(text: str) -> str | None:
    """What stands in the last `<answer>…</answer>`; None if there is none."""
    end = text.rfind("</answer>")
    begin = text.rfind("<answer>", 0, max(end, 0))
    return text[begin + len("<answer>") : end].strip() if begin >= 0 else None


def after_hashes(text: str) -> str | None:
    """What follows the last `####` on its line, as in GSM8K's solutions; None if there is none."""
    _, mark, rest = text.rpartition("####")
    return rest.lstrip().partition("\n")[0].strip() if mark else None


def after_answer(text: str) -> str | None:
    """What follows `Answer:`, `**Final answer:**`, `The answer is:` or the like on the last line that begins so."""
    for line in reversed(text.splitlines()):
        if head := _HEAD.match(line[:_HEAD_LENGTH]):
            return line[head.end() :].strip()
    return None


def final_answer(text: str) -> str | None:
    r"""The answer that a response marks as its last word, in one spelling; None if it marks none.

    Only what follows `</think>` counts, where that tag is. Looked for in this order: the last `\boxed{…}`, the last
    `<answer>…</answer>`, the last line that begins with `Answer:` or the like, the last `####`. Linear in the length of
    the text, whatever is in it.
    """
    text = text.rpartition(THINK_END)[2]
    for find in (boxed, tagged, after_answer, after_hashes):
        if found := find(text):
            return spelling(found) or None
    return None


def spelling(answer: str) -> str:
    r"""One spelling for answers that differ in dress only: `$1{,}024.00$.`, `\text{1024}` and `1,024` are `1024`.

    Spaces, dollar signs, sizes of brackets, text commands and a full stop at the end go; fractions have one command.
    Numbers lose thousands separators, leading zeros and zeros after the point. What differs in value keeps differing.
    """
    text = answer.strip().strip("$*").removeprefix("\\(").removesuffix("\\)").strip()
    text = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\(?:left|right|[!,;: ])|\{,\}(?=\d)", lambda found: "," if found[0] == "{,}" else "", text)
    text = re.sub(r"[\s$]+", "", text.replace("−", "-")).rstrip(".")
    number = _NUMBER.fullmatch(text) if len(text) <= LONGEST_NUMBER else None
    if number is None or not any(character.isdigit() for character in text):
        return text
    whole = (number[2] or "").replace(",", "").lstrip("0") or "0"
    decimals = (number[3] or "").rstrip("0")
    value = f"{whole}.{decimals}" if decimals else whole
    return f"-{value}" if number[1] == "-" and value != "0" else value
