"""How code of the user's own comes in: `FILE.py:NAME` becomes the object, and every way to get it wrong one line."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from vantage.errors import UserError


def load_object(spec: str, what: str) -> Any:
    """The object called NAME in FILE.py.

    The file runs once in a process, however many names are taken from it, and can import its neighbours.

    Args:
        spec: `FILE.py:NAME`; `~` is expanded, a relative path starts at the working directory.
        what: The field that the spec was given for, such as `--reward`; every message starts with it.

    Raises:
        UserError: the spec has another form, the file is missing or does not import, or it has no such name.
    """
    file, colon, name = spec.rpartition(":")
    if not colon or not file.endswith(".py") or not name.isidentifier():
        raise UserError(f"{what}: {spec!r} is not of the form FILE.py:NAME")
    path = Path(file).expanduser()
    if not path.is_file():
        siblings = [sibling.name for sibling in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UserError(f"{what}: there is no file {file!r}{did_you_mean(path.name, siblings)}")
    module = _load_module(path, what)
    if not hasattr(module, name):
        names = [found for found in vars(module) if not found.startswith("_")]
        raise UserError(f"{what}: {file} has no {name!r}{did_you_mean(name, names)}")
    return getattr(module, name)


def plugin_names(group: str) -> list[str]:
    """Names that installed packages have registered in an entry-point group such as `vantage.tasks`."""
    return sorted({plugin.name for plugin in entry_points(group=group)})


def load_plugin(group: str, name: str, what: str) -> Any:
    """The object that an installed package has registered as `name`; `UserError` if its package does not import."""
    plugin = next(plugin for plugin in entry_points(group=group) if plugin.name == name)
    try:
        return plugin.load()
    except (Exception, SystemExit) as error:
        raise UserError(f"{what}: the plugin {name!r} ({plugin.value}) does not load: {one_line(error)}") from error


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """`, did you mean 'NEAREST'?`, or nothing where no candidate is near."""
    near = difflib.get_close_matches(name, list(candidates), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def one_line(error: BaseException, limit: int = 200) -> str:
    """Type and message of an exception on one line of at most `limit` characters."""
    try:
        message = " ".join(str(error).split())
    except Exception:  # an exception class of the user's may fail to print itself
        message = ""
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _load_module(path: Path, what: str) -> ModuleType:
    """Run a file as a module of its own name, or return it where the same text has run already."""
    path = path.resolve()
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UserError(f"{what}: {path.name} can not be read: {error.strerror}") from error
    # The text is part of the name: an edited file is a new module, which matters in a notebook.
    digest = hashlib.sha256(str(path).encode() + b"\0" + source).hexdigest()[:12]
    name = f"vantage_plugin_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{what}: {path.name} can not be loaded as a Python module")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look a class's module up in sys.modules, so it must be there before the file runs.
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # at the end: a neighbour must not shadow an installed package
    try:
        # Compiled from the bytes that were hashed: the loader's bytecode cache may miss an edit within a second.
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"{what}: {path.name}{_line_of(error, path)} fails on import: {one_line(error)}") from error
    return module


def _line_of(error: BaseException, path: Path) -> str:
    """` line N`: where in the file the error came up, or nothing where that is unknown."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f" line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f" line {lines[-1]}" if lines else ""
