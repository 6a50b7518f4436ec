"""The families of checkable instructions of IFEval (arXiv 2311.07911, table 1), by their ids, each a function of a text.

What a family needs are IFEval's own keyword arguments. Keywords are matched as they are written, not as regular
expressions, and every check takes time in proportion to the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vantage.verifiers import counting
from vantage.verifiers.jsontext import MAX_DEPTH, deeper_than
from vantage.verifiers.language import LANGUAGES, language_of

RELATIONS = ("less than", "at least")
ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
RESPONSES_DIVIDER = "******"


@dataclass(frozen=True)
class Argument:
    """What an argument must be."""

    kind: str
    right: Callable[[Any], bool]


COUNT = Argument("a number from 0", lambda value: _is_whole(value) and value >= 0)
PLACE = Argument("a number from 1", lambda value: _is_whole(value) and value >= 1)
RELATION = Argument(" or ".join(map(repr, RELATIONS)), lambda value: value in RELATIONS)
TEXT = Argument("text", lambda value: isinstance(value, str) and bool(value.strip()))
LETTER = Argument("one character", lambda value: isinstance(value, str) and len(value.strip()) == 1)
TEXTS = Argument(
    "a list of texts", lambda value: isinstance(value, list | tuple) and bool(value) and all(map(TEXT.right, value))
)
LANGUAGE = Argument(
    f"one of {', '.join(sorted(LANGUAGES))}", lambda value: isinstance(value, str) and value in LANGUAGES
)


def _is_whole(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and value == value // 1


@dataclass(frozen=True)
class Family:
    """A family of instructions: what it checks of a text, given the arguments by name, and what these must be."""

    check: Callable[..., bool]
    arguments: Mapping[str, Argument] = field(default_factory=dict)


def holds(count: int, relation: str, bound: float) -> bool:
    """`less than` or `at least` the bound."""
    return count < bound if relation == "less than" else count >= bound


def keywords_existence(text: str, keywords: Sequence[str]) -> bool:
    """All keywords are there, in any case, also within words."""
    return all(_occurrences(text, keyword) for keyword in keywords)


def keyword_frequency(text: str, keyword: str, frequency: float, relation: str) -> bool:
    """Occurrences of a keyword, in any case, also within words."""
    return holds(_occurrences(text, keyword.strip()), relation, frequency)


def no_forbidden_words(text: str, forbidden_words: Sequence[str]) -> bool:
    """None of the words is there as a whole word, in any case."""
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(text: str, letter: str, let_frequency: float, let_relation: str) -> bool:
    """Occurrences of a character, in any case."""
    return holds(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def in_language(text: str, language: str) -> bool:
    """The text is in the language as far as `vantage.verifiers.language` can tell; undecided is not."""
    return language_of(text) == language


def number_sentences(text: str, num_sentences: float, relation: str) -> bool:
    """Number of sentences."""
    return holds(counting.sentences(text), relation, num_sentences)


def number_paragraphs(text: str, num_paragraphs: float) -> bool:
    """Exact number of paragraphs between dividers `***`."""
    return counting.paragraphs(text) == num_paragraphs


def number_words(text: str, num_words: float, relation: str) -> bool:
    """Number of words."""
    return holds(counting.words(text), relation, num_words)


def nth_paragraph_first_word(text: str, num_paragraphs: float, nth_paragraph: float, first_word: str) -> bool:
    """Exact number of paragraphs between blank lines, and the first word of the n-th, in any case."""
    parts = [part.strip() for part in text.split("\n\n")]
    count = sum(map(bool, parts))
    if count != num_paragraphs or nth_paragraph > count or not parts[int(nth_paragraph) - 1]:
        return False
    word = parts[int(nth_paragraph) - 1].split()[0].lstrip("'").lstrip('"')
    return re.split("[.,?!'\"]", word)[0].lower() == first_word.lower()


def number_placeholders(text: str, num_placeholders: float) -> bool:
    """At least so many `[placeholders]`."""
    return counting.placeholders(text) >= num_placeholders


def postscript(text: str, postscript_marker: str) -> bool:
    """The marker is there, in any case; `P.S.` and `P.P.S` also with spaces after their points."""
    patterns = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    marker = postscript_marker.strip()
    return re.search(patterns.get(marker, re.escape(marker.lower())), text.lower()) is not None


def number_bullets(text: str, num_bullets: float) -> bool:
    """Exact number of bullet points."""
    return counting.bullets(text) == num_bullets


def constrained_response(text: str) -> bool:
    """One of three answers is there."""
    return any(answer in text for answer in ANSWERS)


def number_highlights(text: str, num_highlights: float) -> bool:
    """At least so many *highlights*."""
    return counting.highlights(text) >= num_highlights


def multiple_sections(text: str, section_spliter: str, num_sections: float) -> bool:
    """At least so many sections."""
    return counting.sections(text, section_spliter.strip()) >= num_sections


def json_format(text: str) -> bool:
    """All is JSON, or one fenced block of it; Python's own reading, so that `NaN` passes as in IFEval."""
    import json

    body = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        body = body.removeprefix(fence)
    body = body.removesuffix("```").strip()
    if deeper_than(body, MAX_DEPTH):
        return False
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def two_responses(text: str) -> bool:
    """Two different responses with six asterisks between them."""
    parts = [part.strip() for part in text.split(RESPONSES_DIVIDER)]
    given = [part for part in parts if part]
    return all(parts[1:-1]) and len(given) == 2 and given[0] != given[1]


def repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    """The response starts with the request, in any case."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_phrase(text: str, end_phrase: str) -> bool:
    """The response ends with the phrase, in any case, quotation marks around it aside."""
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def capital_word_frequency(text: str, capital_frequency: float, capital_relation: str) -> bool:
    """Number of words in capitals."""
    return holds(counting.capital_words(text), capital_relation, capital_frequency)


def english_capital(text: str) -> bool:
    """No small letter, at least one capital, and not clearly another language than English."""
    return text.isupper() and language_of(text) in ("en", None)


def english_lowercase(text: str) -> bool:
    """No capital, at least one small letter, and not clearly another language than English."""
    return text.islower() and language_of(text) in ("en", None)


def no_comma(text: str) -> bool:
    """No comma."""
    return "," not in text


def quotation(text: str) -> bool:
    """Double quotation marks around all."""
    body = text.strip()
    return len(body) > 1 and body[0] == body[-1] == '"'


def _occurrences(text: str, keyword: str) -> int:
    return sum(1 for _ in re.finditer(re.escape(keyword), text, re.IGNORECASE))


FAMILIES: Mapping[str, Family] = {
    "keywords:existence": Family(keywords_existence, {"keywords": TEXTS}),
    "keywords:frequency": Family(keyword_frequency, {"keyword": TEXT, "frequency": COUNT, "relation": RELATION}),
    "keywords:forbidden_words": Family(no_forbidden_words, {"forbidden_words": TEXTS}),
    "keywords:letter_frequency": Family(
        letter_frequency, {"letter": LETTER, "let_frequency": COUNT, "let_relation": RELATION}
    ),
    "language:response_language": Family(in_language, {"language": LANGUAGE}),
    "length_constraints:number_sentences": Family(number_sentences, {"num_sentences": COUNT, "relation": RELATION}),
    "length_constraints:number_paragraphs": Family(number_paragraphs, {"num_paragraphs": COUNT}),
    "length_constraints:number_words": Family(number_words, {"num_words": COUNT, "relation": RELATION}),
    "length_constraints:nth_paragraph_first_word": Family(
        nth_paragraph_first_word, {"num_paragraphs": COUNT, "nth_paragraph": PLACE, "first_word": TEXT}
    ),
    "detectable_content:number_placeholders": Family(number_placeholders, {"num_placeholders": COUNT}),
    "detectable_content:postscript": Family(postscript, {"postscript_marker": TEXT}),
    "detectable_format:number_bullet_lists": Family(number_bullets, {"num_bullets": COUNT}),
    "detectable_format:constrained_response": Family(constrained_response),
    "detectable_format:number_highlighted_sections": Family(number_highlights, {"num_highlights": COUNT}),
    "detectable_format:multiple_sections": Family(multiple_sections, {"section_spliter": TEXT, "num_sections": COUNT}),
    "detectable_format:json_format": Family(json_format),
    "detectable_format:title": Family(counting.titled),
    "combination:two_responses": Family(two_responses),
    "combination:repeat_prompt": Family(repeat_prompt, {"prompt_to_repeat": TEXT}),
    "startend:end_checker": Family(end_phrase, {"end_phrase": TEXT}),
    "startend:quotation": Family(quotation),
    "change_case:capital_word_frequency": Family(
        capital_word_frequency, {"capital_frequency": COUNT, "capital_relation": RELATION}
    ),
    "change_case:english_capital": Family(english_capital),
    "change_case:english_lowercase": Family(english_lowercase),
    "punctuation:no_comma": Family(no_comma),
}
"""IFEval's 25 instruction ids."""
