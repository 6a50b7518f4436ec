"""Which packages does vantage need, in which versions? Read from its own metadata, so that nothing is written twice."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

NAME = "vantage-rl"


@dataclass(frozen=True)
class Distribution:
    """What the package declares."""

    name: str
    origin: str
    """How it came here: installed, or a source tree."""
    python: SpecifierSet
    needed: Sequence[Requirement]
    extras: Mapping[str, Sequence[Requirement]]


def read_distribution(pyproject: Path = Path(__file__).parents[2] / "pyproject.toml") -> Distribution:
    """From the installed package's metadata; a source tree that is not installed has a pyproject.toml instead.

    Raises:
        FileNotFoundError: there is neither.
    """
    try:
        found = metadata.metadata(NAME)
    except metadata.PackageNotFoundError:
        return _from_pyproject(pyproject)
    lines = [Requirement(line) for line in metadata.requires(NAME) or []]
    extras = {
        extra: [r for r in lines if r.marker and "extra" in str(r.marker) and r.marker.evaluate({"extra": extra})]
        for extra in found.get_all("Provides-Extra") or []
    }
    needed = [r for r in lines if r.marker is None or r.marker.evaluate({"extra": ""})]
    return Distribution(NAME, "installed", SpecifierSet(found["Requires-Python"] or ""), needed, extras)


def _from_pyproject(path: Path) -> Distribution:
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    return Distribution(
        project["name"],
        "run from its source tree",
        SpecifierSet(project["requires-python"]),
        [Requirement(line) for line in project["dependencies"]],
        {name: [Requirement(line) for line in lines] for name, lines in extras.items()},
    )


def installed_version(name: str) -> str | None:
    """The version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
