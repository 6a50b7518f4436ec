"""Where else does a run report to? `--report-to wandb,tensorboard`: names to sinks, checked before anything is loaded.

metrics.jsonl and samples.jsonl are written in any case; a sink gets the same rows. The packages belong to extras, one for
each sink, and are imported when a run starts.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from vantage.errors import UserError
from vantage.plugins import did_you_mean, load_object, load_plugin, plugin_names
from vantage.requirements import NAME

if TYPE_CHECKING:
    from vantage.trackers.base import Tracker

GROUP = "vantage.trackers"
"""Entry points of plugins."""


@dataclass(frozen=True)
class Sink:
    """A tracker that Vantage knows."""

    target: str
    """MODULE:CLASS."""
    packages: tuple[str, ...]
    """One of these must be installed."""


REGISTRY = {
    "wandb": Sink("vantage.trackers.wandb_sink:WandbTracker", ("wandb",)),
    "tensorboard": Sink("vantage.trackers.tensorboard_sink:TensorBoardTracker", ("tensorboard", "tensorboardX")),
    "trackio": Sink("vantage.trackers.trackio_sink:TrackioTracker", ("trackio",)),
}
"""Each name is the extra's name too."""


def tracker_names() -> list[str]:
    """All names that `--report-to` takes, those of installed plugins (entry points `vantage.trackers`) included."""
    return [*REGISTRY, *plugin_names(GROUP)]


def names_of(report_to: str | Sequence[str]) -> tuple[str, ...]:
    """`wandb,tensorboard`, or several such values, as single names; `none` and empty ones are left out."""
    values = [report_to] if isinstance(report_to, str) else report_to
    found = [name.strip() for value in values for name in value.split(",")]
    return tuple(dict.fromkeys(name for name in found if name not in ("", "none")))


def check(report_to: str | Sequence[str]) -> tuple[str, ...]:
    """The names, once it is sure that each can be had; imports no tracker.

    Raises:
        UserError: there is no such tracker, or its package is not installed (the message has the command that adds it).
    """
    names = names_of(report_to)
    for name in names:
        if name in REGISTRY:
            packages = REGISTRY[name].packages
            if not any(_installed(package) for package in packages):
                raise UserError(
                    f"--report-to {name}: the package {' or '.join(packages)} is not installed; "
                    f'pip install "{NAME}[{name}]"'
                )
        elif ".py:" not in name and name not in plugin_names(GROUP):
            hint = did_you_mean(name, tracker_names()) or f"; known: {', '.join(tracker_names())}, or FILE.py:CLASS"
            raise UserError(f"--report-to: there is no tracker {name!r}{hint}")
    return names


def load(name: str) -> type[Tracker]:
    """The class behind a name that `check` has passed; raises `UserError` for a plugin or file that is no tracker."""
    if name in REGISTRY:
        module, _, attribute = REGISTRY[name].target.partition(":")
        return cast("type[Tracker]", getattr(importlib.import_module(module), attribute))
    from vantage.trackers.base import Tracker

    found = load_object(name, "--report-to") if ".py:" in name else load_plugin(GROUP, name, "--report-to")
    if not (isinstance(found, type) and issubclass(found, Tracker)):
        raise UserError(f"--report-to {name}: {found!r} is not a subclass of vantage.trackers.base.Tracker")
    return found


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a module without a spec is in sys.modules: it is there
        return True
