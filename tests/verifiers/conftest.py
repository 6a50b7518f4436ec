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
