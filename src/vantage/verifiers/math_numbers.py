r"""Are two answers the same but for their dress? Plain numbers, fractions, percentages, units and words, exactly.

This settles most answers in microseconds, without a parser and without a limit on its time. It settles only what it is sure
of; the rest is for `vantage.verifiers.math_judge`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from vantage.verifiers.math_units import MULTIPLIERS, NOT_UNITS, unit_of

LONGEST_NUMBER = 100
"""Characters of what can be a plain number."""
TOLERANCE = Fraction(1, 10**6)
"""By how much a decimal fraction may differ: absolutely, and relatively where the reference is below 1."""

_TRANSLATED = str.maketrans(
    {
        **dict.fromkeys("−–—‒﹣－", "-"), "×": r"\times ", "÷": "/", "·": r"\cdot ", "⋅": r"\cdot ", "π": r"\pi ",
        "∞": r"\infty ", "°": r"^\circ ", "％": "%", "≤": r"\le ", "≥": r"\ge ", "½": r" \frac{1}{2}",
        "¼": r" \frac{1}{4}", "¾": r" \frac{3}{4}", "⅓": r" \frac{1}{3}", "⅔": r" \frac{2}{3}", "⅛": r" \frac{1}{8}",
        "\u00a0": " ", "\u2009": " ", "\u202f": " ", "，": ",", "“": '"', "”": '"', "’": "'",
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
    }
)  # fmt: skip
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|it|sf|tt|normal)|mbox|bm|boldsymbol|operatorname\*?|emph|underline)"
    r"\s*\{([^{}]*)\}"
)
_REPLACED = [
    (re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits)(?![A-Za-z])\s*"), ""),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"(?<!\\)\\!"), ""),
    (re.compile(r"(?<!\\)\\(?:[,;:> ]|q?quad(?![A-Za-z]))|~"), " "),  # not the end of a row before a space
    (re.compile(r"\\([%$#&_])"), r"\1"),
    (re.compile(r"\\degree(?![A-Za-z])|\^\s*\{\s*\\circ\s*\}"), r"^\\circ"),
    (re.compile(r"\\(le|ge|ne)q(?![A-Za-z])"), r"\\\1"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\sqrt\s*(\d)(?!\d)"), r"\\sqrt{\1}"),
    (re.compile(r"([_^])\{(\w)\}"), r"\1\2"),
    (re.compile(r"\s+"), " "),
]
_QUOTES = {"$$": "$$", "$": "$", r"\(": r"\)", r"\[": r"\]", "**": "**", "`": "`", '"': '"', "{": "}"}
_NAMED = re.compile(r"\\?[A-Za-z]{1,10}(?:_\{?\w{1,5}\}?)?(?:\([^()=]{1,10}\))?\s*(?:=|\\approx)(?!=)\s*")

_WHOLE = r"\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?!\d)|\d+"
_DECIMAL = rf"(?:(?:{_WHOLE})(?:\.\d*)?|\.\d+)"
_SIGNED = rf"[-+]? ?{_DECIMAL}"
_POWER = r"10 ?\^ ?(?:\{ ?([-+]?\d{1,3}) ?\}|([-+]?\d{1,3}))"
_FORMS = {
    "scientific": re.compile(rf"({_DECIMAL})(?: ?(?:\\times|\\cdot|\*|x) ?{_POWER}|[eE]([-+]?\d{{1,3}})(?![.\d]))"),
    "power": re.compile(_POWER),
    "mixed": re.compile(r"(\d+) ?\\frac ?\{ ?(\d+) ?\} ?\{ ?(\d+) ?\}|(\d+) (\d+) ?/ ?(\d+)(?![.\d])"),
    "fraction": re.compile(
        rf"\\frac ?\{{ ?({_SIGNED}) ?\}} ?\{{ ?({_SIGNED}) ?\}}|({_DECIMAL}) ?/ ?({_DECIMAL})(?!\d)"
        rf"|\( ?({_SIGNED}) ?\) ?/ ?\( ?({_SIGNED}) ?\)"
    ),
    "base": re.compile(r"(\d+)_(?:\{ ?(\d{1,2}) ?\}|(\d)(?!\d))"),
    "decimal": re.compile(_DECIMAL),
}
_LEAD = re.compile(r"([-+]?) ?([$€£¥₹]|USD|) ?([-+]?) ?")  # -$5 and $-5


@dataclass(frozen=True)
class Number:
    """A plain number as it is written.

    Attributes:
        value: Its value; of `50%` it is 50.
        decimal: Whether it is written with a decimal point or a power of ten, so that it may be rounded.
        percent: Whether a percent sign follows.
        unit: Its unit in one spelling, such as `cm^2`; empty if there is none or it is not a known one.
        base: The base of its digits, 0 if none is written.
        words: Whether words of an unknown kind follow it.
    """

    value: Fraction
    decimal: bool = False
    percent: bool = False
    unit: str = ""
    base: int = 0
    words: bool = False


def undressed(text: str) -> str:
    """The same without what changes only its looks: dollar signs, sizes of brackets, spacing, text commands, a full stop."""
    text = text.strip().translate(_TRANSLATED)
    for _ in range(3):  # \text{\textbf{A}}
        text = _TEXT.sub(r" \1 ", text)
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    while True:
        text = text.strip().rstrip(".,;:").strip()
        for opening, closing in _QUOTES.items():
            inner = text[len(opening) : len(text) - len(closing)]
            enclosed = len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing)
            if enclosed and opening not in inner and closing not in inner:
                text = inner
                break
        else:
            return text


def unspaced(text: str) -> str:
    """Without spaces but for those between digits, which keep numbers apart."""
    return re.sub(r"(?<!\d) | (?!\d)", "", text)


def unnamed(text: str) -> str:
    r"""What `x =`, `f(2) =` or `\theta =` is before; the text itself if there is nothing like it."""
    found = _NAMED.match(text)
    return text[found.end() :] if found else text


def number(text: str) -> Number | None:
    """The number that an undressed text is, None if it is anything else."""
    if len(text) > LONGEST_NUMBER or not any("0" <= character <= "9" for character in text):
        return None
    while text[:1] == "(" and text[-1:] == ")" and not {"(", ")", ","} & set(text[1:-1]):
        text = text[1:-1].strip()
    lead = _LEAD.match(text)
    assert lead is not None  # it may be empty
    signs, unit, text = lead[1] + lead[3], unit_of(lead[2]) or "", text[lead.end() :]
    if len(signs) > 1:
        return None
    for form, pattern in _FORMS.items():
        if found := pattern.match(text):
            read = _read(form, [group for group in found.groups() if group is not None], found[0])
            tail = None if read is None else _tail(text[found.end() :].replace(r"^\circ", "°"), unit)
            if read is not None and tail is not None:
                value, percent, unit, words = read.value * tail[0], *tail[1:]
                return Number(-value if signs == "-" else value, read.decimal, percent, unit, read.base, words)
    return None


def _read(form: str, groups: list[str], text: str) -> Number | None:
    """The number that the groups of a form's match give."""
    if form == "decimal":
        return Number(_fraction(text), "." in text)
    if form == "scientific":
        return Number(_fraction(groups[0]) * Fraction(10) ** int(groups[1]), True)
    if form == "power":
        return Number(Fraction(10) ** int(groups[0]))
    if form == "base":
        return Number(_fraction(groups[0]), base=int(groups[1]))
    parts = [_fraction(group) for group in groups]
    if parts[-1] == 0:
        return None
    if form == "mixed":
        return Number(parts[0] + parts[1] / parts[2])
    return Number(parts[0] / parts[1], any("." in group for group in groups))


def _fraction(text: str) -> Fraction:
    return Fraction(re.sub(r"[ ,+]", "", text).rstrip("."))


def _tail(text: str, unit: str) -> tuple[int, bool, str, bool] | None:
    """What follows a number: a factor, whether a percent sign, the unit, whether unknown words; None if it is no unit."""
    if len(text) == 1 and text.isalpha():  # 5m is a product, 5 m is not
        return None
    text = text.strip()
    if not text:
        return 1, False, unit, False
    if re.fullmatch(r"%|per ?cent|percentage points?", text, re.IGNORECASE):
        return 1, True, unit, False
    factor = 1
    first, _, rest = text.partition(" ")
    if first.lower() in MULTIPLIERS:
        factor, text = MULTIPLIERS[first.lower()], rest.strip()
        if not text:
            return factor, False, unit, False
    known = unit_of(text)
    if known is not None:
        return (factor, False, known, False) if unit in ("", known) else None
    words = re.findall(r"[A-Za-z]+", text)
    if not re.fullmatch(r"[A-Za-z][A-Za-z' -]*", text) or len(words) > 5 or len(words[0]) < 2:
        return None
    return None if {word.lower() for word in words} & NOT_UNITS else (factor, False, unit, True)


def agree(gold: Number, answer: Number) -> bool:
    """Whether an answer is the reference. `50%`, `0.5` and `50` are all right for `50%`, `50` and `50%` for `50`."""
    if gold.unit and answer.unit and gold.unit != answer.unit:
        return False
    if gold.base and answer.base and gold.base != answer.base:
        return False
    decimal = gold.decimal or answer.decimal
    if _close(gold.value, answer.value, decimal):
        return True
    shares = [number.value / 100 if number.percent else number.value for number in (gold, answer)]
    return gold.percent != answer.percent and _close(shares[0], shares[1], decimal)


def _close(gold: Fraction, answer: Fraction, decimal: bool) -> bool:
    return abs(gold - answer) <= (TOLERANCE * min(Fraction(1), abs(gold)) if decimal else 0)


_WORDS = re.compile(r"[A-Za-z][A-Za-z'’ -]*")
_LETTER = re.compile(r"([A-J])|\( ?([A-Ja-j]) ?\)")
_ANY_LETTER = re.compile(r"\(? ?([A-Ja-j]) ?\)?")
_CHOICE = re.compile(r"(?:\(([A-J])\)|([A-J])[.:)])(?: .*)?")
SHORT_WORDS = frozenset(["yes", "no", "true", "odd", "even", "none", "all", "red", "blue", "east", "west", "dne"])
MATHS_WORDS = frozenset(["infinity", "infty", "sqrt", "sine", "cosine", "alpha", "beta", "gamma", "theta", "lambda"])


def text_answer(dressed: str, plain: str) -> str | None:
    """The words that a reference consists of, in lower case, if it is to be compared as words; None if it is maths.

    Words count as such inside of a text command, or from four letters on, or if they are common; `ab` is a product. A letter
    from A to J is a choice.
    """
    if letter := _LETTER.fullmatch(plain):
        return (letter[1] or letter[2]).lower()
    words = _words(plain)
    if words is None or "\\" in plain or words in MATHS_WORDS:
        return None
    in_text = re.fullmatch(r"\s*\$?\s*\\(?:text|textbf|mathrm|mbox|textrm)\s*\{[^{}]*\}\s*\$?\s*", dressed) is not None
    return words if in_text or words in SHORT_WORDS or max(len(word) for word in words.split()) >= 4 else None


def same_text(gold: str, answer: str) -> bool:
    """Whether an undressed answer consists of the words, or marks the letter, that `text_answer` has given."""
    if len(gold) == 1:
        found = _ANY_LETTER.fullmatch(answer) or _CHOICE.fullmatch(answer)
        return found is not None and next(group for group in found.groups() if group).lower() == gold
    return _words(answer) == gold


def _words(text: str) -> str | None:
    return " ".join(text.replace("’", "'").lower().split()) if _WORDS.fullmatch(text) else None
