"""Vantage: reinforcement learning with verifiable rewards, with the value estimate first.

    from vantage import Poise, TrainConfig, Trainer
    Trainer(TrainConfig(algo=Poise(), steps=20)).train()

Everything below is imported when it is first used, so that `import vantage` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vantage.config import EvalConfig as EvalConfig
    from vantage.config import SftConfig as SftConfig
    from vantage.config import TrainConfig as TrainConfig
    from vantage.errors import UserError as UserError
    from vantage.estimators.grpo import Grpo as Grpo
    from vantage.estimators.poise import Poise as Poise
    from vantage.estimators.rloo import Rloo as Rloo
    from vantage.tasks.base import Problem as Problem
    from vantage.tasks.base import Task as Task
    from vantage.trainer import Trainer as Trainer

__version__ = "0.1.0"

_WHERE = {
    "EvalConfig": "vantage.config",
    "Grpo": "vantage.estimators.grpo",
    "Poise": "vantage.estimators.poise",
    "Problem": "vantage.tasks.base",
    "Rloo": "vantage.estimators.rloo",
    "SftConfig": "vantage.config",
    "Task": "vantage.tasks.base",
    "TrainConfig": "vantage.config",
    "Trainer": "vantage.trainer",
    "UserError": "vantage.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'vantage' has no attribute {name!r}")
    found = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
