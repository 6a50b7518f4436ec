"""The registry of tasks: `--task SPEC` to a `Task`. Importing it loads neither torch nor datasets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vantage.errors import UserError
from vantage.plugins import did_you_mean, load_object, load_plugin, one_line, plugin_names
from vantage.tasks import constraints, programs, sums, toolcalls
from vantage.tasks.base import Message, Problem, Prompt, Task
from vantage.tasks.files import from_dataset, read_task
from vantage.tasks.readers import is_file_spec

__all__ = ["Message", "Problem", "Prompt", "Task", "from_dataset", "get_task", "task_names"]

# Name to what makes the task of a split (the text after the colon, "" without one), and the names of its splits.
BUILT_IN: dict[str, tuple[Callable[[str], Task], Sequence[str]]] = {
    "sums": (sums.Sums, tuple(sums.SPLITS)),
    "programs": (programs.Programs, tuple(programs.SPLITS)),
    "tools": (toolcalls.ToolCalls, tuple(toolcalls.SPLITS)),
    "instructions": (constraints.Constraints, tuple(constraints.SPLITS)),
}
_PLUGINS = "vantage.tasks"
_FORMS = "jsonl:PATH, parquet:PATH, hub:NAME, FILE.py:CLASS"


def task_names() -> list[str]:
    """Names that `get_task` takes: built-in tasks with their splits, then those of installed plugins."""
    built_in = [f"{name}:{split}" if split else name for name, (_, splits) in BUILT_IN.items() for split in splits]
    return [*built_in, *plugin_names(_PLUGINS)]


def get_task(
    spec: str, *, eval_spec: str | None = None, prompt_column: str = "prompt", domain_column: str | None = None
) -> Task:
    """Make the task that a spec names.

    Args:
        spec: A built-in name (`sums`, `sums:SPLIT`), data (`jsonl:PATH`, `parquet:PATH`, `hub:NAME[:CONFIG][@SPLIT]`,
            or a path ending in .jsonl, .json or .parquet), `FILE.py:CLASS`, or an installed plugin's name (entry
            points `vantage.tasks`).
        eval_spec, prompt_column, domain_column: For data only, see `vantage.tasks.files.read_task`.

    Raises:
        UserError: there is no such task, or it can not be made.
    """
    if is_file_spec(spec):
        return read_task(spec, eval_spec=eval_spec, prompt_column=prompt_column, domain_column=domain_column)
    for option, given in (
        ("eval_spec", eval_spec is not None),
        ("--prompt-column", prompt_column != "prompt"),
        ("domain_column", domain_column is not None),
    ):
        if given:
            raise UserError(f"{option}: only data files and Hub datasets have it, not the task {spec!r}; leave it out")
    name, _, split = spec.partition(":")
    if name in BUILT_IN:
        return BUILT_IN[name][0](split)
    if ".py:" in spec:
        return _checked(load_object(spec, "--task"), spec)
    if spec in plugin_names(_PLUGINS):
        return _checked(load_plugin(_PLUGINS, spec, "--task"), spec)
    hint = did_you_mean(spec, task_names()) or f"; known: {', '.join(task_names())}, {_FORMS}"
    raise UserError(f"--task: there is no task {spec!r}{hint}")


def _checked(found: Any, spec: str) -> Task:
    """Instantiate a class of the user's and see that it has what every task has."""
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise UserError(f"--task {spec}: {found!r} is not a subclass of vantage.tasks.Task")
    try:
        task = found()
        missing = [field for field in ("name", "version", "train") if not hasattr(task, field)]
        right = bool(missing) or (len(task.train) > 0 and isinstance(task.train[0], Problem))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--task {spec}: {found.__name__} fails: {one_line(error)}") from error
    if missing:
        raise UserError(f"--task {spec}: {found.__name__} does not set {', '.join(missing)}")
    if not right:
        raise UserError(f"--task {spec}: {found.__name__}.train must be a sequence of vantage.tasks.Problem, not empty")
    return task
