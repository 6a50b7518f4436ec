r"""Are two expressions equal? What math-verify says, in a worker process, with more care where it is too generous.

math-verify's own time limits are off: they need the main thread and an alarm, and C code does not hear them. The worker is
killed from outside. It compares with rounding to six places, by which every number below is 0, and takes two equations without
real solutions for the same one; both are looked at once more here.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from collections.abc import Mapping
from typing import Any

from vantage.verifiers.base import UnjudgedError

WARM_UP = (r"\frac{x^2+1}{2}", r"\sqrt{3}+\pi", r"\{1, 2\}", r"[0, 1)", r"x=5", r"\begin{pmatrix}1\\2\end{pmatrix}")
SMALL, CLOSE = 0.01, 1e-5
"""References below the one are compared relatively, with the other."""
UNREADABLE = "its reference answer can not be read as maths"


def installed_version() -> str | None:
    """The version of math-verify that is installed, None if there is none."""
    try:
        return importlib.metadata.version("math-verify")
    except importlib.metadata.PackageNotFoundError:
        return None


class MathJudge:
    """Compares an answer (`text`) with the reference in the column `gold`, both without prose around them."""

    name = "math-judge"

    def __init__(self) -> None:
        self.version = f"1+math-verify-{installed_version()}"

    def prepare(self) -> None:
        """Import and warm up: the first expressions of each kind take a second together."""
        for expression in WARM_UP:
            self.score(expression, {"gold": expression})

    def score(self, text: str, columns: Mapping[str, Any]) -> float:
        """1 if equal, else 0. Raises `UnjudgedError` if the reference itself can not be read."""
        import math_verify

        gold = _parsed(columns["gold"])
        if not gold:
            raise UnjudgedError(UNREADABLE)
        answer = _parsed(text)
        # 1 <= x < 2 is right for [1, 2): by itself it takes only the other way round.
        if not answer or not math_verify.verify(gold, answer, allow_set_relation_comp=True, timeout_seconds=None):
            return 0.0
        return float(_really(gold[0], answer[0]))


@functools.lru_cache(maxsize=1000)
def _parsed(expression: str) -> list[Any]:
    """What math-verify makes of an expression: a list of one, or an empty one."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    for name in ("math_verify.parser", "math_verify.grader"):  # they warn that time limits are off
        logging.getLogger(name).setLevel(logging.CRITICAL)
    latex = LatexExtractionConfig(boxed_match_priority=0)
    found: list[Any] = parse(
        f"\\boxed{{{expression}}}", [latex], fallback_mode="no_fallback", parsing_timeout=None
    ) or parse(expression, [ExprExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
    return found


def _really(gold: Any, answer: Any) -> bool:
    """Whether what math-verify holds for equal is not so only for want of digits or of solutions."""
    import sympy

    if isinstance(gold, sympy.Eq) and isinstance(answer, sympy.Eq):
        return _same_equation(gold, answer)
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return True
    size = _real(gold)
    if size is None or size == 0 or abs(size) >= SMALL:
        return True
    found = _real(answer)
    # 0.5 % may stand for 0.5 and the other way round, as with larger numbers.
    return found is not None and any(abs(found * factor - size) <= CLOSE * abs(size) for factor in (1, 100, 0.01))


def _real(expression: Any) -> float | None:
    try:
        return float(expression.evalf(15))
    except (TypeError, ValueError, OverflowError):
        return None


def _same_equation(gold: Any, answer: Any) -> bool:
    import sympy

    if gold.free_symbols != answer.free_symbols:
        return False
    try:
        solutions = sympy.solve(gold, gold.free_symbols)
    except NotImplementedError:
        solutions = []
    if solutions:
        return True
    ratio = sympy.simplify((gold.lhs - gold.rhs) / (answer.lhs - answer.rhs))
    return bool(ratio.is_number and ratio.is_finite and ratio != 0)
