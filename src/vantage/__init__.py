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
    from vantage.estimators.dapo import Dapo as Dapo
    from vantage.estimators.dr_grpo import DrGrpo as DrGrpo
    from vantage.estimators.genac import Genac as Genac
    from vantage.estimators.grpo import Grpo as Grpo
    from vantage.estimators.poise import Poise as Poise
    from vantage.estimators.poise_token import PoiseToken as PoiseToken
    from vantage.estimators.ppo import Ppo as Ppo
    from vantage.estimators.reinforce import Reinforce as Reinforce
    from vantage.estimators.rloo import Rloo as Rloo
    from vantage.estimators.vimpo import Vimpo as Vimpo
    from vantage.estimators.vineppo import Vineppo as Vineppo
    from vantage.tasks.base import Problem as Problem
    from vantage.tasks.base import Task as Task
    from vantage.trainer import Trainer as Trainer

__version__ = "0.1.0"

_WHERE = {
    "Dapo": "vantage.estimators.dapo",
    "DrGrpo": "vantage.estimators.dr_grpo",
    "EvalConfig": "vantage.config",
    "Genac": "vantage.estimators.genac",
    "Grpo": "vantage.estimators.grpo",
    "Poise": "vantage.estimators.poise",
    "PoiseToken": "vantage.estimators.poise_token",
    "Ppo": "vantage.estimators.ppo",
    "Problem": "vantage.tasks.base",
    "Reinforce": "vantage.estimators.reinforce",
    "Rloo": "vantage.estimators.rloo",
    "SftConfig": "vantage.config",
    "Task": "vantage.tasks.base",
    "TrainConfig": "vantage.config",
    "Trainer": "vantage.trainer",
    "UserError": "vantage.errors",
    "Vimpo": "vantage.estimators.vimpo",
    "Vineppo": "vantage.estimators.vineppo",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'vantage' has no attribute {name!r}")
    found = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
