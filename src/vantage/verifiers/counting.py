"""How many words, sentences, bullets, … does a text have? Counted as IFEval counts them, in linear time.

Sentences and words in capitals are IFEval's only where its statistical tokenizer (nltk's punkt) and the rules here agree;
`docs/verifiers-instructions.md` says what the rules are.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"\w+(?:['’./&-]\w+)*")
_CONTRACTION = re.compile(r"(?:N'T|'(?:S|M|D|RE|VE|LL))$")
_SENTENCE_END = re.compile(r"""[.!?…]["'”’)\]*_]*(?=\s)|[。！？]""")
_STAR_BULLET = re.compile(r"^[^\S\n]*\*[^*].*$", re.MULTILINE)
_DASH_BULLET = re.compile(r"^[^\S\n]*-", re.MULTILINE)
_HIGHLIGHT = re.compile(r"\*([^\n*]*)\*")
_DOUBLE_HIGHLIGHT = re.compile(r"\*\*([^\n*]*)\*\*")
_DIVIDER = re.compile(r"\s?\*\*\*\s?")
_NEVER_LAST = frozenset(
    ["mr", "mrs", "ms", "dr", "prof", "rev", "gen", "col", "sgt", "capt", "lt", "st", "vs", "e.g", "i.e", "cf"]
)
_SOMETIMES_LAST = frozenset(
    ["etc", "a.m", "p.m", "u.s", "u.k", "u.n", "inc", "ltd", "corp", "jr", "sr", "approx", "dept"]
)
_LONGEST_ABBREVIATION = 6


def words(text: str) -> int:
    """Runs of letters, digits and underscores."""
    return sum(1 for _ in _WORD.finditer(text))


def capital_words(text: str) -> int:
    """Words all of whose letters are capitals; parts joined by a hyphen or a point are one word, `DON'T` is two."""
    tokens = (match.group() for match in _TOKEN.finditer(text))
    return sum(1 + (_CONTRACTION.search(token) is not None) for token in tokens if token.isupper())


def sentences(text: str) -> int:
    """Stretches that end in `.`, `!`, `?` or `…` before white space, or at the end of the text with or without it.

    An ellipsis ends one only if a capital follows, and so does an abbreviation such as `etc.`; the points of others, such
    as `Dr.`, of initials and of a number that starts a line end none.
    """
    count, start = 0, 0
    for match in _SENTENCE_END.finditer(text):
        mark = text[match.start()]
        ellipsis = mark == "…" or text[max(match.start() - 1, 0) : match.start() + 1] == ".."
        if (ellipsis and not _capital_follows(text, match.end())) or (
            mark == "." and not ellipsis and _is_abbreviation(text, start, match.start())
        ):
            continue
        if _WORD.search(text, start, match.end()):
            count += 1
        start = match.end()
    return count + (_WORD.search(text, start) is not None)


def _is_abbreviation(text: str, start: int, point: int) -> bool:
    """Whether the point after the word that ends there is the word's and not the sentence's."""
    begin = point
    while begin > start and not text[begin - 1].isspace():
        begin -= 1
        if point - begin > _LONGEST_ABBREVIATION:
            return False
    word = text[begin:point].lstrip("(\"'“[*_")
    if word.isdigit():
        while begin and text[begin - 1] in " \t":
            begin -= 1
        return not begin or text[begin - 1] == "\n"
    if word.lower() in _SOMETIMES_LAST:
        return _WORD.search(text, point) is not None and not _capital_follows(text, point)
    initial = len(word) == 1 and word.isupper() and word != "I"
    return initial or word.lower() in _NEVER_LAST


def _capital_follows(text: str, position: int) -> bool:
    following = _WORD.search(text, position)
    return following is not None and following.group()[0].isupper()


def bullets(text: str) -> int:
    """Lines that start with `-`, or with one `*` and something after it."""
    return sum(1 for kind in (_STAR_BULLET, _DASH_BULLET) for _ in kind.finditer(text))


def placeholders(text: str) -> int:
    """`[…]` within a line; the first closing bracket ends one."""
    count = 0
    for line in text.split("\n"):
        end = -1
        while (start := line.find("[", end + 1)) >= 0 and (end := line.find("]", start)) >= 0:
            count += 1
    return count


def highlights(text: str) -> int:
    """`*…*` within a line that is not empty; `**…**` counts too, as IFEval has it."""
    single = sum(1 for match in _HIGHLIGHT.finditer(text) if match[1].strip())
    return single + sum(1 for match in _DOUBLE_HIGHLIGHT.finditer(text) if match[1].strip())


def sections(text: str, splitter: str) -> int:
    """Places where the splitter is followed by a number, as in `Section 2`."""
    return sum(1 for _ in re.finditer(re.escape(splitter) + r"\s?\d+", text))


def paragraphs(text: str) -> int | None:
    """Paragraphs between dividers `***`; `None` if one that is neither first nor last is empty."""
    parts = [bool(part.strip()) for part in _DIVIDER.split(text)]
    return sum(parts) if all(parts[1:-1]) else None


def titled(text: str) -> bool:
    """Whether a line has a title in double angular brackets that is not empty."""
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end - 2 and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False
