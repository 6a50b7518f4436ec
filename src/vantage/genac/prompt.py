"""What does the critic read? A template with problem, unfinished response, budget and facts about the solver.

A template is text with placeholders such as `{problem}`; `{n}` counts up from 1, and `{{`, `}}` are braces. What stands
between the lines `<!-- icc -->` and `<!-- /icc -->` is there only with In-Context Conditioning, so the two prompts of an
ablation differ in nothing else. Everything is filled in at once: braces in a problem or response stay as they are.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vantage.errors import UserError
from vantage.genac.parsing import Tag
from vantage.plugins import did_you_mean

if TYPE_CHECKING:
    from vantage.genac.actor import ActorFacts

PLACEHOLDERS = (
    "problem", "prefix", "actor_name", "actor_params", "rho_pct", "used", "limit", "remaining", "n", "opening", "closing",
)  # fmt: skip
REQUIRED = ("problem", "prefix")
ABOUT_ACTOR = ("actor_name", "actor_params", "rho_pct")
_PIECE = re.compile(r"\{\{|\}\}|\{([A-Za-z_]+)\}|[{}]")
_BLOCK = re.compile(r"^<!-- icc -->\n(.*?)^<!-- /icc -->\n", re.DOTALL | re.MULTILINE)

FULL = """\
You estimate how likely one particular language model is to finish a problem correctly.

# What to do
{n}. Judge how hard the problem is.
<!-- icc -->
{n}. Infer from the unfinished response how able this solver is, and combine that with the facts about it.
<!-- /icc -->
{n}. Go through the response: what is settled, what is wrong, where does it waver?
{n}. Estimate the chance that this solver, going on from here within its budget, ends at the right final answer.
{n}. Give one integer from 0 (almost never) to 10 (almost always).

Reason briefly, then end with exactly one line of this form:
{opening}N{closing}

<!-- icc -->
# The solver
model: {actor_name}, {actor_params} parameters
problems it has recently answered correctly: {rho_pct}%
Your number must describe this solver, not yourself.

<!-- /icc -->
# Problem
{problem}

# The solver's unfinished response (may be empty)
<partial>
{prefix}
</partial>

# Budget
{used} of {limit} response tokens are used; {remaining} are left.
"""
"""The procedure comes first and what is new in each state last: a state's prompt, up to the end of the response so far, is what
that of a later state of the response begins with, and generation runs it once."""

COMPACT = """\
<!-- icc -->
{rho_pct}%
<!-- /icc -->
{remaining};{problem}
{prefix}?"""
"""For critics of one token a character, which know no language: the facts and nothing else."""
FULL_TAG, COMPACT_TAG = Tag(), Tag("[", "]")
CHARACTERWISE = 0.9
"""Tokens a character from which on a tokenizer counts as one of characters."""


@dataclass(frozen=True)
class StateView:
    """What a prompt says of one state."""

    problem: str
    prefix: str
    """The response so far, special tokens included."""
    used: int
    """Tokens of the response so far."""
    limit: int


@dataclass(frozen=True)
class Template:
    """A checked template; `icc` decides whether the solver is described. Raises `UserError` for one that can not work."""

    text: str
    tag: Tag = FULL_TAG
    icc: bool = True
    chat: bool = True
    """Whether the prompt becomes a user turn where the critic's tokenizer has a chat template."""
    source: str = "template"
    """What messages call it."""

    def __post_init__(self) -> None:
        if "<!-- icc -->" in _BLOCK.sub("", self.text) or "<!-- /icc -->" in _BLOCK.sub("", self.text):
            raise UserError(f"{self.source}: a line <!-- icc --> needs its <!-- /icc -->, each on a line of its own")
        outside = _names(_BLOCK.sub("", self.text), self.source)
        names = _names(self.text, self.source)
        for name in REQUIRED:
            if name not in outside:
                raise UserError(f"{self.source}: the placeholder {{{name}}} is missing: the critic would not see it")
        if self.icc and not set(ABOUT_ACTOR) & set(names):
            shown = ", ".join(f"{{{name}}}" for name in ABOUT_ACTOR)
            raise UserError(
                f"{self.source}: it shows nothing of the solver; use one of {shown}, or switch --genac.icc off"
            )

    @property
    def digest(self) -> str:
        """A short name: critics are tied to what they were trained to read."""
        parts = (self.text, self.tag.opening, self.tag.closing, str(self.icc), str(self.chat))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def render(self, state: StateView, actor: ActorFacts) -> str:
        """The text of a prompt."""
        text = _BLOCK.sub(r"\1" if self.icc else "", self.text)
        values: dict[str, str] = {
            "problem": state.problem,
            "prefix": state.prefix,
            "actor_name": actor.name,
            "actor_params": actor.size,
            "rho_pct": actor.percent,
            "used": str(state.used),
            "limit": str(state.limit),
            "remaining": str(state.limit - state.used),
            "opening": self.tag.opening,
            "closing": self.tag.closing,
        }
        count = 0

        def fill(match: re.Match[str]) -> str:
            nonlocal count
            name = match.group(1)
            if name == "n":
                count += 1
                return str(count)
            return values[name] if name else match.group()[0]

        return _PIECE.sub(fill, text)

    def encode(self, tokenizer: Any, state: StateView, actor: ActorFacts) -> list[int]:
        """Token ids of a prompt by the critic's own tokenizer and chat template; thinking blocks of hybrid models are off."""
        text = self.render(state, actor)
        if self.chat and getattr(tokenizer, "chat_template", None):
            turn = [{"role": "user", "content": text}]
            text = tokenizer.apply_chat_template(
                turn, add_generation_prompt=True, tokenize=False, enable_thinking=False
            )
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])
        return list(tokenizer(text, add_special_tokens=True)["input_ids"])


def _names(text: str, source: str) -> list[str]:
    """The placeholders of a text; raises `UserError` for one that there is not, and for a lone brace."""
    found = []
    for match in _PIECE.finditer(text):
        name = match.group(1)
        if name and name not in PLACEHOLDERS:
            hint = did_you_mean(name, PLACEHOLDERS) or f"; there are: {', '.join(PLACEHOLDERS)}"
            raise UserError(f"{source}: there is no placeholder {match.group()}{hint}; write {{{{ for a brace")
        if name:
            found.append(name)
        elif len(match.group()) == 1:
            raise UserError(f"{source}: a lone {match.group()!r}; write it twice where a brace is meant")
    return found


def characterwise(tokenizer: Any) -> bool:
    """Whether a tokenizer spends about a token on each character: such a critic reads no English."""
    sample = "Estimate the chance that this solver ends at the right final answer."
    return len(tokenizer(sample, add_special_tokens=False)["input_ids"]) >= CHARACTERWISE * len(sample)


def template_for(
    tokenizer: Any, file: Path | str | None = None, *, icc: bool = True, tag: Tag | None = None
) -> Template:
    """The template of a critic: the user's `file`, else the compact one for a tokenizer of characters, else the full one.

    Raises `UserError` for a file that can not be read or is no template.
    """
    if file is None:
        if characterwise(tokenizer):
            return Template(COMPACT, tag or COMPACT_TAG, icc, source="the compact template")
        return Template(FULL, tag or FULL_TAG, icc, source="the default template")
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"--genac.template {file}: can not be read ({reason})") from error
    return Template(text, tag or FULL_TAG, icc, source=f"--genac.template {file}")
