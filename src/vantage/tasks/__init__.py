"""The registry of tasks: `--task SPEC` to a `Task`. Importing it loads neither torch nor datasets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vantage.errors import UserError
from vantage.plugins import did_you_mean, load_object, load_plugin, one_line, plugin_names
from vantage.tasks import constraints, programs, sums, toolcalls
from vantage.tasks.base import DEFAULT_LENGTH, Message, Problem, Prompt, Task
from vantage.tasks.catalog import CATALOG, CatalogTask
from vantage.tasks.files import from_dataset, read_task
from vantage.tasks.readers import is_file_spec
from vantage.tasks.reasoning import SCHEME, ReasoningGym

__all__ = [
    "Message", "Problem", "Prompt", "Task", "check_task", "from_dataset", "get_task", "options_of", "task_names", "task_specs",
]  # fmt: skip

# Name to what makes the task of a split (the text after the colon, "" without one), and the names of its splits.
BUILT_IN: dict[str, tuple[Callable[[str], Task], Sequence[str]]] = {
    "sums": (sums.Sums, tuple(sums.SPLITS)),
    "programs": (programs.Programs, tuple(programs.SPLITS)),
    "tools": (toolcalls.ToolCalls, tuple(toolcalls.SPLITS)),
    "instructions": (constraints.Constraints, tuple(constraints.SPLITS)),
}
_PLUGINS = "vantage.tasks"
_DATA_ONLY = "only data files and Hub datasets have it, not the task {}; leave it out"
_FORMS = "jsonl:PATH, parquet:PATH, hub:NAME, gym:NAME, FILE.py:CLASS"


def task_names() -> list[str]:
    """Names that `get_task` takes: built-in tasks with their splits, datasets, then those of installed plugins."""
    built_in = [f"{name}:{split}" if split else name for name, (_, splits) in BUILT_IN.items() for split in splits]
    return [*built_in, *CATALOG, *plugin_names(_PLUGINS)]


def get_task(
    spec: str,
    *,
    eval_spec: str | None = None,
    prompt_column: str = "prompt",
    answer_column: str | None = None,
    domain_column: str | None = None,
    prompt_template: str | None = None,
    system_prompt: str | None = None,
    hold_out: bool = True,
) -> Task:
    """Make the task that a spec names.

    Args:
        spec: A built-in name (`sums`, `sums:SPLIT`), a dataset of the catalogue (`gsm8k`), data (`jsonl:PATH`,
            `parquet:PATH`, `hub:NAME[:CONFIG][@SPLIT]`, or a path ending in .jsonl, .json or .parquet), `gym:NAME[:SEED]`
            of reasoning-gym, `FILE.py:CLASS`, or an installed plugin's name (entry points `vantage.tasks`).
        eval_spec, prompt_column, answer_column, domain_column: For data only, see `vantage.tasks.files.read_task`.
        prompt_template, system_prompt: For data, datasets of the catalogue and reasoning-gym, see
            `vantage.tasks.rowformat.RowFormat`.
        hold_out: Whether data without a split for evaluation keeps rows back; say no where evaluation has other tasks.

    Raises:
        UserError: there is no such task, or it can not be made.
    """
    if is_file_spec(spec):
        return read_task(
            spec, eval_spec=eval_spec, prompt_column=prompt_column, answer_column=answer_column,
            domain_column=domain_column, prompt_template=prompt_template, system_prompt=system_prompt,
            hold_out=hold_out,
        )  # fmt: skip
    taken = options_of(spec)
    for option, given, why in (
        ("eval_spec", eval_spec is not None, _DATA_ONLY),
        ("prompt_column", prompt_column != "prompt", _DATA_ONLY),
        ("answer_column", answer_column is not None, _DATA_ONLY),
        ("domain_column", domain_column is not None, _DATA_ONLY),
        ("prompt_template", prompt_template is not None, "the task {} writes its own prompts; leave it out"),
        ("system_prompt", system_prompt is not None, "the task {} writes its own prompts; leave it out"),
    ):
        if given and option not in taken:
            flag = option if option == "eval_spec" else "--" + option.replace("_", "-")
            raise UserError(f"{flag}: {why.format(repr(spec))}")
    if spec in CATALOG:
        return CatalogTask(spec, prompt_template, system_prompt, hold_out)
    if spec.startswith(SCHEME):
        return ReasoningGym(spec, prompt_template, system_prompt)
    name, _, split = spec.partition(":")
    if name in BUILT_IN:
        return BUILT_IN[name][0](split)
    if ".py:" in spec:
        return _checked(load_object(spec, "--task"), spec)
    if spec in plugin_names(_PLUGINS):
        return _checked(load_plugin(_PLUGINS, spec, "--task"), spec)
    if Path(spec).is_file():
        raise UserError(
            f"--task: {spec!r} is a file, but not by its name one that is read: make it .jsonl, .json or .parquet, or say "
            "which it is with jsonl: or parquet: before it"
        )
    hint = did_you_mean(spec, task_names()) or f"; known: {', '.join(task_names())}, {_FORMS}"
    raise UserError(f"--task: there is no task {spec!r}{hint}")


def check_task(spec: str) -> None:
    """Raise `UserError` for a task that there is not, before torch is imported; data is read later, and once."""
    if not is_file_spec(spec):
        get_task(spec)


def options_of(spec: str) -> frozenset[str]:
    """The options of `get_task` that the task of a spec takes."""
    texts = ("prompt_template", "system_prompt")
    if is_file_spec(spec):
        return frozenset(("eval_spec", "prompt_column", "answer_column", "domain_column", "hold_out", *texts))
    if spec in CATALOG:
        return frozenset(("hold_out", *texts))
    return frozenset(texts if spec.startswith(SCHEME) else ())


def usual_length(spec: str) -> int | None:
    """Tokens of the longest response where nobody says otherwise; None where the task must be made to know."""
    if is_file_spec(spec):
        return DEFAULT_LENGTH
    if spec in CATALOG:
        return CATALOG[spec].max_new_tokens
    return get_task(spec).max_new_tokens if spec.partition(":")[0] in BUILT_IN else None


def task_specs(text: str, what: str = "--task") -> list[str]:
    """The specs in `a,b,c`, for `--task` and `--eval-task`; a comma in the path of a file that exists is no separator.

    Raises:
        UserError: one of them is empty, or comes twice.
    """
    if Path(text.partition(":")[2] or text).is_file() or Path(text).is_file():
        return [text]
    specs = [spec.strip() for spec in text.split(",")]
    if not all(specs):
        raise UserError(f"{what}: {text!r} has an empty name between its commas")
    twice = next((spec for spec in specs if specs.count(spec) > 1), None)
    if twice:
        raise UserError(f"{what}: {text!r} names {twice!r} twice")
    return specs


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
