"""The registry of algorithms: `--algo NAME` to the class of its options. Importing it loads no torch."""

from __future__ import annotations

import importlib

from vantage.errors import UserError
from vantage.estimators.base import Algorithm
from vantage.plugins import did_you_mean, load_object, load_plugin, plugin_names

GROUP = "vantage.algorithms"
"""Entry points of plugins."""
REGISTRY = {
    "poise": "vantage.estimators.poise:Poise",
    "poise_token": "vantage.estimators.poise_token:PoiseToken",
    "grpo": "vantage.estimators.grpo:Grpo",
    "rloo": "vantage.estimators.rloo:Rloo",
    "reinforce": "vantage.estimators.reinforce:Reinforce",
    "dr_grpo": "vantage.estimators.dr_grpo:DrGrpo",
    "dapo": "vantage.estimators.dapo:Dapo",
    "vimpo": "vantage.estimators.vimpo:Vimpo",
    "vineppo": "vantage.estimators.vineppo:Vineppo",
    "ppo": "vantage.estimators.ppo:Ppo",
    "genac": "vantage.estimators.genac:Genac",
}


def algorithm_names() -> list[str]:
    """All names that `--algo` takes, those of installed plugins (entry points `vantage.algorithms`) included."""
    return [*REGISTRY, *plugin_names(GROUP)]


def get_algorithm(spec: str) -> type[Algorithm]:
    """The options class of a registered algorithm, of a plugin, or of `FILE.py:CLASS`; raises `UserError`."""
    if spec in REGISTRY:
        module, _, name = REGISTRY[spec].partition(":")
        found = getattr(importlib.import_module(module), name)
    elif ".py:" in spec:
        found = load_object(spec, "--algo")
    elif spec in plugin_names(GROUP):
        found = load_plugin(GROUP, spec, "--algo")
    else:
        hint = did_you_mean(spec, algorithm_names()) or f"; known: {', '.join(algorithm_names())}"
        raise UserError(f"--algo: there is no algorithm {spec!r}{hint}")
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise UserError(f"--algo {spec}: {found!r} is not a subclass of vantage.estimators.base.Algorithm")
    return found
