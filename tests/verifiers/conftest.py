"""Levels of the sandbox that the tests go through."""

from __future__ import annotations

import functools

import pytest

from vantage.verifiers import sandbox
from vantage.verifiers.levels import Level


@functools.cache
def _working() -> dict[str, Level]:
    return {level.name: level for level in sandbox.working()}


@pytest.fixture(params=["bubblewrap", "namespaces", "rlimits"])
def at(request: pytest.FixtureRequest) -> Level:
    """Each level in turn; resource limits are there on every machine."""
    if request.param not in _working():
        assert request.param != "rlimits", "the weakest level must work everywhere"
        pytest.skip(f"this machine has no {request.param}")
    return _working()[request.param]


@pytest.fixture(params=["best", "rlimits"])
def verifying_at(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Level:
    """The verifier works at this level: the best one of this machine, or resource limits."""
    levels = _working()
    if request.param == "rlimits" and len(levels) == 1:
        pytest.skip("the best level of this machine is rlimits")
    level = next(iter(levels.values())) if request.param == "best" else levels["rlimits"]
    monkeypatch.setattr(sandbox, "level", lambda: level)
    return level
