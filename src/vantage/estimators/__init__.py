"""The registry of algorithms: `--algo NAME` to the class of its options. Importing it loads no torch."""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import entry_points

from vantage.errors import UserError
from vantage.estimators.base import Algorithm
from vantage.plugins import load_object

REGISTRY = {
    "poise": "vantage.estimators.poise:Poise",
    "grpo": "vantage.estimators.grpo:Grpo",
    "rloo": "vantage.estimators.rloo:Rloo",
}


def algorithm_names() -> list[str]:
    """All names that `--algo` takes, those of installed plugins (entry points `vantage.algorithms`) included."""
    return [*REGISTRY, *(e.name for e in entry_points(group="vantage.algorithms"))]


def get_algorithm(spec: str) -> type[Algorithm]:
    """The options class of a registered algorithm, of a plugin, or of `FILE.py:CLASS`; raises `UserError`."""
    if spec in REGISTRY:
        module, _, name = REGISTRY[spec].partition(":")
        found = getattr(importlib.import_module(module), name)
    elif ".py:" in spec:
        found = load_object(spec, "--algo")
    elif plugin := next((e for e in entry_points(group="vantage.algorithms") if e.name == spec), None):
        found = plugin.load()
    else:
        near = difflib.get_close_matches(spec, algorithm_names(), n=1)
        hint = f", did you mean {near[0]!r}?" if near else f"; known: {', '.join(algorithm_names())}"
        raise UserError(f"--algo: there is no algorithm {spec!r}{hint}")
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise UserError(f"--algo {spec}: {found!r} is not a subclass of vantage.estimators.base.Algorithm")
    return found
