"""The whole audit: measure, judge, write numbers and report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vantage.audit.plan import Audit, plan
from vantage.errors import UserError
from vantage.estimators.base import Algorithm

JSON_FILE = "audit.json"


@dataclass(frozen=True)
class Outcome:
    """A finished audit."""

    out: Path
    report: Path
    results: dict[str, Any]
    """What audit.json holds."""


def audit(
    model: str,
    algos: Sequence[str | Algorithm] | Mapping[str, str | Algorithm] | None = None,
    *,
    silent: bool = False,
    **request: Any,
) -> Outcome:
    """Audit the gradients of algorithms on one policy; arguments as `vantage.audit.plan.plan` takes them.

    Raises:
        UserError: a mistake in what is asked for, before anything is written.
    """
    return run_audit(plan(model, algos, **request), silent=silent)


def run_audit(asked: Audit, silent: bool = False) -> Outcome:
    """Measure what is missing of a planned audit, and write numbers and report; raises as `audit` does."""
    check_folder(asked)
    found = results(asked, silent)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / JSON_FILE).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    from vantage.audit.report import write_audit_report

    return Outcome(asked.out, write_audit_report(found, asked.out), found)


def check_folder(asked: Audit) -> None:
    """Raise `UserError` where --out holds something else; nothing is written."""
    if not asked.out.is_dir() or not any(asked.out.iterdir()):
        return
    if not any((asked.out / name).exists() for name in (JSON_FILE, "measured")):
        raise UserError(f"--out {asked.out}: this folder holds other files and no audit; choose another")


def results(asked: Audit, silent: bool = False) -> dict[str, Any]:
    """Everything of audit.json."""
    from vantage.audit.words import verdict
    from vantage.compare.results import machine
    from vantage.tracking import finite, git_commit, versions

    def say(text: str) -> None:
        if not silent:
            print(f"audit: {text}", file=sys.stderr, flush=True)

    started = time.perf_counter()
    if asked.exact:
        from vantage.audit.exact import exact

        measured = exact(asked)
    else:
        from vantage.audit.sampled import sampled

        measured = sampled(asked, say)
    for entry in measured["algorithms"].values():
        entry["verdict"] = verdict(entry, asked.tolerance, asked.confidence, asked.exact)
    found = {
        "what": "vantage audit", "exact": asked.exact, "model": asked.model, "settings": _plain(asked.settings),
        "rollouts_per_step": asked.rollouts_per_step, "fill_steps": asked.fill_steps, "tolerance": asked.tolerance,
        "confidence": asked.confidence, "options": {name: dict(vars(algo)) for name, algo in asked.algorithms.items()},
        **measured, "seconds": time.perf_counter() - started, "versions": versions(), "git_commit": git_commit(),
        "machine": machine(),
    }  # fmt: skip
    plain = finite(found)
    assert isinstance(plain, dict)
    return plain


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
