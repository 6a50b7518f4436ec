"""From a verifier's name to a reward function: `--reward math`, and what built-in datasets are scored by.

A verifier is an object with `name`, `version` and `score(text, columns)`: 0 to 1 for a response and the columns of its
row, or None where it can not be judged. It may have `score_many(texts, rows)`, and `complaint(columns)`, which says what is
wrong with a row and is asked before training (`vantage.preflight`). Its module is imported when it is asked for, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

from vantage.errors import UserError
from vantage.plugins import did_you_mean, one_line
from vantage.rewards.calls import STANDARD_KEYWORDS
from vantage.rewards.functions import RewardFunction, completion_text


class Verifier(Protocol):
    """What every verifier has."""

    name: str
    version: str

    def score(self, text: str, columns: Mapping[str, Any]) -> float | None:
        """0 to 1, or None where the response can not be judged."""
        ...


_MAKERS: dict[str, str | Callable[[], Verifier]] = {
    "math": "vantage.verifiers.math:MathVerifier",
    "code": "vantage.verifiers.code:CodeVerifier",
    "tools": "vantage.verifiers.tools:ToolCallVerifier",
    "instructions": "vantage.verifiers.instructions:InstructionVerifier",
}


def verifier_names() -> list[str]:
    """Names that `verifier` takes."""
    return list(_MAKERS)


def register_verifier(name: str, make: Callable[[], Verifier]) -> None:
    """Have `make()` be the verifier of that name in this process, from now on."""
    _MAKERS[name] = make


def verifier(name: str, what: str = "--reward") -> Verifier:
    """A new verifier of that name; `what` is the field that the name was given for.

    Raises:
        UserError: there is no such verifier, or its module or what it needs is not installed.
    """
    if name not in _MAKERS:
        raise UserError(f"{what}: there is no verifier {name!r}{did_you_mean(name, _MAKERS) or _known()}")
    make: Any = _MAKERS[name]
    try:
        if isinstance(make, str):
            module, _, attribute = make.partition(":")
            make = getattr(import_module(module), attribute)
        made: Verifier = make()
    except UserError:
        raise
    except (ImportError, AttributeError) as error:
        raise UserError(f"{what}: the verifier {name!r} is not available here: {one_line(error)}") from error
    return made


def verifier_reward(name: str, what: str = "--reward") -> RewardFunction:
    """The verifier of that name under the contract of reward functions; raises as `verifier` does.

    Responses are scored one by one with the columns of their row, or all at once by the verifier's own
    `score_many(texts, rows)` where it has one.
    """
    judge: Any = verifier(name, what)

    def scored(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        texts = [completion_text(completion) for completion in completions]
        own = {key: values for key, values in columns.items() if key not in STANDARD_KEYWORDS}
        rows = [{key: values[index] for key, values in own.items()} for index in range(len(texts))]
        if hasattr(judge, "score_many"):
            return list(judge.score_many(texts, rows))
        return [judge.score(text, row) for text, row in zip(texts, rows, strict=True)]

    scored.__name__ = name
    scored.complaint = getattr(judge, "complaint", None)  # type: ignore[attr-defined]
    scored.verifier_version = f"{judge.name}-{judge.version}"  # type: ignore[attr-defined]
    return scored


def _known() -> str:
    return f"; known: {', '.join(_MAKERS)}"
