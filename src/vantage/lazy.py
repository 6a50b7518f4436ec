"""Imports torch at first use, so that `vantage --help` and a misspelt flag are answered at once.

Modules that the command line needs for their options alone (the estimators) write `from vantage.lazy import torch`
and use it inside functions, exactly as they would use the module.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


class LazyModule:
    """Stands for a module and imports it when an attribute is first read."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


if TYPE_CHECKING:
    import torch as torch
else:
    torch = LazyModule("torch")
