"""Everything here runs a real vLLM: `make install-vllm` installs its CPU build beside the rest, `make test-vllm` runs it."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in Path(item.fspath).parents:
            item.add_marker(pytest.mark.vllm)
            if find_spec("vllm") is None:
                item.add_marker(pytest.mark.skip(reason="vllm is not installed: make install-vllm"))


@pytest.fixture(scope="session", autouse=True)
def small_vllm():
    """Less memory, and no warm-up that would only be for speed."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_CPU_CI_ENV", "1")
