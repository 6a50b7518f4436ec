"""From a verifier's name to a reward function: `--reward math`, and what built-in datasets are scored by.

They judge away from the run, `code` in its sandbox and the others in worker processes, all behind a cache.
A verifier is an object with `name`, `version` and `score(text, columns)`: 0 to 1 for a response and the columns of its
row, or None where it can not be judged. It may have `score_many(texts, rows)`, and `complaint(columns)`, which says what is
wrong with a row and is asked before training (`vantage.preflight`). Its module is imported when it is asked for, not before.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from vantage.errors import UserError
from vantage.plugins import did_you_mean, one_line

if TYPE_CHECKING:  # a verifier's worker process begins with vantage.verifiers, which needs vantage.rewards
    from vantage.rewards.functions import RewardFunction
    from vantage.verifiers.base import Verifier

_MAKERS: dict[str, str | Callable[[], Verifier]] = {
    "math": "vantage.verifiers.math:MathVerifier",
    "code": "vantage.verifiers.code:cached",
    "tools": "vantage.verifiers.tools:isolated",
    "instructions": "vantage.verifiers.instructions:isolated",
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
    """The verifier of that name under the contract of reward functions; raises as `verifier` does."""
    from vantage.verifiers.base import reward_function

    made = verifier(name, what)
    scored = reward_function(made)
    scored.__name__ = name
    scored.complaint = getattr(made, "complaint", None)  # type: ignore[attr-defined]
    return scored


def _known() -> str:
    return f"; known: {', '.join(_MAKERS)}"
