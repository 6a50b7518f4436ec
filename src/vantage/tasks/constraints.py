"""The embedded world `instructions`: write words that meet all of a few constraints, such as `3 words, no e, end !:`.

    fig tuna corn!

Constraints are instructions of IFEval, and `vantage.verifiers.instructions` checks them: very many responses are right.
Words need not be of the list that demonstrations are written with.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vantage.rewards.functions import completion_text
from vantage.tasks.base import Criticised, Message, Problem
from vantage.tasks.critique import Critique
from vantage.tasks.critique_words import criticise_words, steps_of
from vantage.tasks.embedded import EmbeddedTask, falls_outside
from vantage.verifiers.instructions import InstructionVerifier

_LEXICON = """
ant bat bee bun cat corn cow crab cup dog egg elk elm fig fir fog fox gold gray hat hen hill ice ivy jam kiwi lake leaf lime
milk moon nut oak owl pear pen pie pig plum rain rat red rice rock root salt sand sea seed sky snow soup star sun tan tin
tuna wind yak
"""
WORDS = tuple(_LEXICON.split())
LETTERS = "aeinorst"
ENDS = ("!", "?", "bye", "now")
FAMILIES = ("no", "least", "use", "caps", "end", "layout")
_VERIFIER = InstructionVerifier()


@dataclass(frozen=True)
class Request:
    """Constraints on a response; what is empty or 0 is not asked for.

    Attributes:
        words: Exact number of words.
        no: Letter that must not occur.
        least: Letter that must occur at least `times`.
        use: Word that must occur.
        caps: Whether all is in capitals.
        end: Text that ends the response, one of `ENDS`.
        layout: `quoted`, `title` (a word in double angular brackets) or the number of bullet points.
    """

    words: int
    no: str = ""
    least: str = ""
    times: int = 0
    use: str = ""
    caps: bool = False
    end: str = ""
    layout: str = ""

    @property
    def bullets(self) -> int:
        """Number of bullet points."""
        return int(self.layout) if self.layout.isdigit() else 0

    def __str__(self) -> str:
        """The prompt, such as `3 words, no e, 2+ o, use fig, caps, end !, 2 bullets:`."""
        phrases = [
            f"{self.words} words",
            self.no and f"no {self.no}",
            self.least and f"{self.times}+ {self.least}",
            self.use and f"use {self.use}",
            "caps" if self.caps else "",
            self.end and f"end {self.end}",
            f"{self.layout} bullets" if self.bullets else self.layout,
        ]
        return ", ".join(filter(None, phrases)) + ":"


_PROMPT = re.compile(
    rf"(?P<words>[2-9]) words(?:, no (?P<no>[{LETTERS}]))?(?:, (?P<times>[1-3])\+ (?P<least>[{LETTERS}]))?"
    rf"(?:, use (?P<use>{'|'.join(WORDS)}))?(?P<caps>, caps)?(?:, end (?P<end>{'|'.join(map(re.escape, ENDS))}))?"
    r"(?:, (?P<layout>quoted|title|[2-3](?= bullets))(?: bullets)?)?:"
)


def parse_prompt(prompt: str) -> Request | None:
    """The constraints of a prompt, or `None` if it is none of this world."""
    match = _PROMPT.fullmatch(prompt)
    if not match:
        return None
    found = {name: text or "" for name, text in match.groupdict().items()}
    request = Request(
        words=int(found["words"]),
        no=found["no"],
        least=found["least"],
        times=int(found["times"] or 0),
        use=found["use"],
        caps=bool(found["caps"]),
        end=found["end"],
        layout=found["layout"],
    )
    return request if str(request) == prompt else None


def columns_of(request: Request) -> dict[str, Any]:
    """The constraints as IFEval's columns `instruction_id_list` and `kwargs`."""
    exactly: dict[str, Any] = {"num_words": request.words, "relation": "at least"}
    found: list[tuple[str, dict[str, Any]]] = [
        ("length_constraints:number_words", exactly),
        ("length_constraints:number_words", {"num_words": request.words + 1, "relation": "less than"}),
    ]
    letter = "keywords:letter_frequency"
    if request.no:
        found.append((letter, {"letter": request.no, "let_frequency": 1, "let_relation": "less than"}))
    if request.least:
        found.append((letter, {"letter": request.least, "let_frequency": request.times, "let_relation": "at least"}))
    if request.use:
        found.append(("keywords:existence", {"keywords": [request.use]}))
    if request.caps:
        found.append(("change_case:english_capital", {}))
    if request.end:
        found.append(("startend:end_checker", {"end_phrase": request.end}))
    if request.bullets:
        found.append(("detectable_format:number_bullet_lists", {"num_bullets": request.bullets}))
    elif request.layout:
        name = {"quoted": "startend:quotation", "title": "detectable_format:title"}[request.layout]
        found.append((name, {}))
    return {"instruction_id_list": [name for name, _ in found], "kwargs": [arguments for _, arguments in found]}


@dataclass(frozen=True)
class Split:
    """Numbers of words, and of constraints besides these in equal shares."""

    words: tuple[int, ...]
    extras: tuple[int, ...]
    max_new_tokens: int


SPLITS = {
    "": Split(words=(2, 3, 4, 5, 6), extras=(2, 3, 4), max_new_tokens=64),
    "longer": Split(words=(7, 8, 9), extras=(2, 3, 4), max_new_tokens=88),
    "more-constraints": Split(words=(3, 4, 5, 6), extras=(5, 6), max_new_tokens=64),
}


class Constraints(EmbeddedTask[Split], Criticised):
    """Constraints to be met by a few words; see the module.

    A fifth of all sets of constraints is held out. Training problem i depends on the split and on i only; numbers of
    constraints take turns. Every problem can be solved.

    Args:
        split: `""`, `longer` (7 to 9 words) or `more-constraints` (five or six besides the number of words).

    Raises:
        UserError: there is no such split.
    """

    world = "instructions"
    version = "1"
    step_separator = " "
    alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+,:!?*<>" \n'

    def __init__(self, split: str = "") -> None:
        super().__init__(instructions_reward, SPLITS, split)

    def solution(self, problem: Problem) -> str | None:
        """One right response, the same at every call, or `None` if it is no problem of this world."""
        request = parse_prompt(problem.prompt) if isinstance(problem.prompt, str) else None
        return None if request is None else response(request, random.Random(f"instructions/solution/{request}"))

    def complaint(self, problem: Problem) -> str | None:
        """Whether the columns are the constraints of the prompt, and a solution is known."""
        request = parse_prompt(problem.prompt) if isinstance(problem.prompt, str) else None
        if request is None or dict(problem.columns) != columns_of(request):
            return f"{problem.prompt!r} has the instructions {problem.columns.get('instruction_id_list')!r}"
        return None if self.solution(problem) is not None else f"no response to {problem.prompt!r} is known"

    def demonstration(self, problem: Problem, slips: float, rng: random.Random) -> str | None:
        """A right response, other words at every call, but each word and mark breaks a constraint with that probability."""
        request = parse_prompt(problem.prompt) if isinstance(problem.prompt, str) else None
        return None if request is None else response(request, rng, slips)

    def steps(self, problem: Problem) -> int:
        """See `vantage.tasks.critique_words`."""
        request = parse_prompt(str(problem.prompt))
        return 0 if request is None else steps_of(request)

    def critique(self, problem: Problem, partial: str, success: float) -> Critique | None:
        """See `vantage.tasks.critique_words`."""
        request = parse_prompt(problem.prompt) if isinstance(problem.prompt, str) else None
        return None if request is None else criticise_words(request, partial, self.step_rate(success))

    def draw(self, rng: random.Random, index: int, held_out: bool) -> Problem:
        """Draw constraints until they lie on the wanted side and can be met."""
        while True:
            request = _request(rng, rng.choice(self.split.words), self.split.extras[index % len(self.split.extras)])
            if is_held_out(request) == held_out and choose(request, rng) is not None:
                return Problem(prompt=str(request), columns=columns_of(request), domain="instructions")


def _request(rng: random.Random, words: int, extras: int) -> Request:
    """That many constraints besides the number of words, each drawn on its own: they may contradict each other."""
    asked = rng.sample(FAMILIES, extras)
    layouts = ["quoted", "title", *(str(n) for n in (2, 3) if n <= words)]
    request = Request(words)
    if "no" in asked:
        request = replace(request, no=rng.choice(LETTERS))
    if "least" in asked:
        request = replace(request, least=rng.choice(LETTERS), times=rng.randrange(1, 4))
    if "use" in asked:
        request = replace(request, use=rng.choice(WORDS))
    if "end" in asked:
        request = replace(request, end=rng.choice(ENDS))
    return replace(request, caps="caps" in asked, layout=rng.choice(layouts) if "layout" in asked else "")


def choose(request: Request, rng: random.Random) -> list[str] | None:
    """Words that meet the constraints, drawn at random, or `None` if there are not enough of them, whatever `rng`.

    There are enough if every occurrence of the letter that must occur can have a word of its own.
    """
    fixed = [word for word in (request.use, request.end) if word.isalpha()]
    free = request.words - len(fixed)
    allowed = [word for word in WORDS if not (request.no and request.no in word)]
    helpful = [word for word in allowed if request.least and request.least in word]
    missing = request.times - "".join(fixed).count(request.least) if request.least else 0
    if free < max(missing, 0) or (missing > 0 and not helpful) or (request.no and request.no in "".join(fixed)):
        return None
    chosen: list[str] = []
    while len(chosen) < free:
        chosen.append(rng.choice(helpful if missing >= free - len(chosen) else allowed))
        missing -= chosen[-1].count(request.least) if request.least else 0
    rng.shuffle(chosen)
    if request.use:
        chosen.insert(rng.randrange(len(chosen) + 1), request.use)
    return chosen + fixed[-1:] if request.end.isalpha() else chosen


def response(request: Request, rng: random.Random, slips: float = 0.0) -> str | None:
    """A response that meets the constraints, but for slips; `None` if none was found.

    Each word, the end and the layout go wrong with probability `slips`; two wrong steps may make a right one, such as a
    word left out and one written twice.
    """
    chosen = choose(request, rng)
    if chosen is None:
        return None
    words = [
        w
        for word in chosen
        for w in (_slipped(word, request, rng) if rng.random() < slips else [_cased(word, request)])
    ]
    end = "" if request.end.isalpha() or rng.random() < slips else request.end
    layout = "" if rng.random() < slips else request.layout
    if not words:
        return end
    if layout == "title":
        words[0] = f"<<{words[0]}>>"
    if layout.isdigit():
        starts = [0, *sorted(rng.sample(range(1, len(words)), min(int(layout), len(words)) - 1)), len(words)]
        text = "\n".join("* " + " ".join(words[a:b]) for a, b in itertools.pairwise(starts))
    else:
        text = " ".join(words)
    return f'"{text}{end}"' if layout == "quoted" else text + end


def _cased(word: str, request: Request) -> str:
    return word.upper() if request.caps else word


def _slipped(word: str, request: Request, rng: random.Random) -> list[str]:
    """What is written for a word instead: nothing, the word twice, another case or a word with the forbidden letter."""
    wrong = [[], [_cased(word, request)] * 2]
    if request.caps:
        wrong.append([word])
    if request.no:
        wrong.append([_cased(rng.choice([w for w in WORDS if request.no in w]), request)])
    return rng.choice(wrong)


def is_held_out(request: Request) -> bool:
    """Whether a set of constraints belongs to the held-out side."""
    return falls_outside(str(request))


def instructions_reward(
    completions: Sequence[str | list[Message]],
    instruction_id_list: Sequence[Sequence[str]],
    kwargs: Sequence[Sequence[dict[str, Any]]],
    **others: Any,
) -> list[float | None]:
    """1 if the response follows all instructions, else 0."""
    return [
        _VERIFIER.score(completion_text(completion), {"instruction_id_list": names, "kwargs": arguments})
        for completion, names, arguments in zip(completions, instruction_id_list, kwargs, strict=True)
    ]
