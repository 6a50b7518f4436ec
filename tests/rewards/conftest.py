"""Scores completions of one short prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vantage.rewards import Rewards, RewardSet


@pytest.fixture
def score() -> Callable[..., Rewards]:
    def call(
        functions: Any, completions: list[str], weights: Any = None, chat: bool = False, **columns: Any
    ) -> Rewards:
        prompts: Any = [[{"role": "user", "content": "q"}] if chat else "q" for _ in completions]
        return RewardSet(functions if isinstance(functions, list) else [functions], weights)(
            prompts=prompts, completions=completions, completion_ids=[[1, 2] for _ in completions], columns=columns
        )

    return call
