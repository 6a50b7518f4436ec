"""Fixtures that several tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.browser import Browser

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a job that a script put in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:  # side by side, more threads than cores only get into each other's way
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random policy of a few thousand parameters in float32."""
    from tests.helpers import SMALL
    from vantage import tiny

    folder = tmp_path_factory.mktemp("model") / "small"
    model, tokenizer = tiny.fresh(0, **SMALL)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a chat-template model that gives answers, right ones now and then; see `tests.chat`."""
    from tests.chat import make_chat_model

    return make_chat_model(tmp_path_factory.mktemp("model") / "chat")


@pytest.fixture(autouse=True)
def no_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs inside of a test draw no figures, which would take longer than the run; `figures` marks tests that want them."""
    if request.node.get_closest_marker("figures") is None:
        monkeypatch.setattr("vantage.report.run_plots", lambda runs: [])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped without a CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked:
        import torch

        if not torch.cuda.is_available():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless Chromium; what needs it is skipped where there is none."""
    from tests.browser import Browser, find_browser

    program = find_browser()
    if program is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    found = Browser(program, tmp_path_factory.mktemp("profile"))
    yield found
    found.close()
