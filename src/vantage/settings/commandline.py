"""A command line becomes a dataclass: tyro converts the values and prints the help, each mistake is one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from vantage.config import TrainConfig
from vantage.errors import UserError
from vantage.estimators import algorithm_names
from vantage.settings.arguments import Argument, Scan, arguments_of, scan, unknown_flag, unknown_option, value_of
from vantage.settings.configfile import Settings, option_fields, read_yaml, settings_of, train_fields
from vantage.settings.fieldtypes import Field, describe, fields_of

T = TypeVar("T")
ALIASES = {"rollouts_per_prompt": ("--num-generations",)}
"""Other spellings of flags; TRL has num_generations."""
CONFIG = Field("config", str | None, "YAML file of settings, as --dry-run prints them; flags override it.", None)
WORDS_OF_BOOL = {"true": "True", "false": "False", "none": "None", "null": "None"}
DRY_RUN = Field("dry_run", bool, "Print the resolved configuration as YAML and stop; nothing is written.", False)


@dataclass(frozen=True)
class TrainRequest:
    """What `vantage train` was asked for."""

    config: TrainConfig
    dry_run: bool
    note: str = ""
    """What the user should know before the run; empty for nothing."""


def parse_dataclass(cls: type[T], argv: Sequence[str], prog: str, positional: Mapping[str, str] | None = None) -> T:
    """Parse a command whose settings are one dataclass; `positional` maps fields to what the help calls them.

    Raises:
        UserError: any mistake, in one line.
        SystemExit: after --help.
    """
    arguments = arguments_of(fields_of(cls), positional=tuple(positional or ()), metavars=positional)
    found = scan(argv, arguments, partial(unknown_flag, arguments=arguments))
    return cls(**convert(found, arguments, prog, cls.__doc__ or ""))


def parse_train(argv: Sequence[str], prog: str = "vantage train") -> TrainRequest:
    """YAML overlays defaults, flags overlay YAML; raises as `parse_dataclass` does."""
    fields = {"config": CONFIG, "dry_run": DRY_RUN, **train_fields()}
    names = algorithm_names()
    shown = {"config": "[CONFIG.yaml]", "algo": f"{{{','.join(names)}}}|FILE.py:CLASS"}
    common = arguments_of(fields, positional=("config",), metavars=shown, aliases=ALIASES)
    first = scan(argv, common)
    settings = _from_file(first)
    algorithm = settings.algorithm
    arguments = common + arguments_of(option_fields(algorithm), group=algorithm.name)
    found = scan(argv, arguments, partial(unknown_option, name=algorithm.name, arguments=arguments, algorithms=names))
    if found.positionals != first.positionals:
        raise UserError(found.too_many or f"{found.positionals[0]!r}: put CONFIG.yaml first, before the flags")
    kept = _settle_batch(settings.values, found.given)
    start = {**kept, "algo": settings.spec, **{f"{algorithm.name}.{k}": v for k, v in settings.options.items()}}
    arguments = [_starting_at(argument, start) for argument in arguments]
    values = convert(found, arguments, prog, f"Train a policy; the algorithm is {algorithm.name}.")
    return TrainRequest(_train_config(values, settings, found), bool(values["dry_run"]), settings.note)


def _from_file(first: Scan) -> Settings:
    """Settings of the YAML file, if one was given, for the algorithm of the flag, if one was given."""
    algo = first.given["algo"][2][0] if "algo" in first.given else None
    if first.positionals:
        path = first.positionals[0]
        if first.too_many and not path.endswith((".yaml", ".yml")) and not Path(path).exists():
            raise UserError(first.too_many)
        return settings_of(read_yaml(path), path, algo)
    return Settings(algo) if algo else Settings()


def _settle_batch(values: Mapping[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """The file's values without those that say the size of a step in another way than the flags do.

    A resolved file has rollouts and prompts of a step. Where a flag changes one, the other one must not stay.
    """
    dropped = set()
    if {"rollouts_per_step", "rollouts_per_prompt"} & set(typed):
        dropped.add("prompts_per_step")
    if "prompts_per_step" in typed:
        dropped.add("rollouts_per_step")
    return {key: value for key, value in values.items() if key not in dropped}


def _train_config(values: Mapping[str, Any], settings: Settings, found: Scan) -> TrainConfig:
    """Validate; a message on a field that only the file has set begins with the file."""
    name = settings.algorithm.name
    options = {key.removeprefix(f"{name}."): value for key, value in values.items() if key.startswith(f"{name}.")}
    own = {f.name for f in dataclasses.fields(TrainConfig)} - {"algo"}
    try:
        config = Settings(settings.spec, {k: v for k, v in values.items() if k in own}, options).config()
    except UserError as error:
        about = str(error).split(" ")[0].removeprefix("--").replace("-", "_")
        in_file = about.replace(".", "_") in settings.values or about.partition(".")[2] in settings.options
        where = f"{found.positionals[0]}: " if in_file and about not in found.given else ""
        raise UserError(f"{where}{error}") from error
    both = {"rollouts_per_step", "prompts_per_step"} <= set(found.given)
    if both and config.prompts * config.group_size != config.rollouts_per_step:
        raise UserError(
            f"--prompts-per-step {config.prompts} × {config.group_size} rollouts per prompt are not the "
            f"--rollouts-per-step {config.rollouts_per_step}; give one of the two flags"
        )
    return config


def _starting_at(argument: Argument, values: Mapping[str, Any]) -> Argument:
    default = values.get(argument.key, argument.field.default)
    return dataclasses.replace(argument, field=dataclasses.replace(argument.field, default=default))


def convert(found: Scan, arguments: Sequence[Argument], prog: str, description: str) -> dict[str, Any]:
    """The values of all arguments by key, through tyro; prints the help instead where it was asked for."""
    import tyro

    if not found.help:
        _require(found, arguments)
    cls = _tyro_class(arguments)
    argv = ["--help"] if found.help else _words(found)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            made = tyro.cli(cls, args=argv, prog=prog, description=description)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(_explain(found, complaint.getvalue())) from None
    return {a.key: getattr(getattr(made, group_field(a)) if a.group else made, a.field.name) for a in arguments}


def _require(found: Scan, arguments: Sequence[Argument]) -> None:
    missing = [a for a in arguments if a.field.default is MISSING and a.key not in found.given]
    for argument in missing:
        if argument.flags or not found.positionals:
            raise UserError(f"{argument.shown} is missing: {argument.field.help.rstrip('.')}")


def _words(found: Scan) -> list[str]:
    """The command line again, in one order: positional arguments, then each flag once with all its values."""
    words = list(found.positionals)
    for argument, typed, values in found.given.values():
        if argument.field.type == bool | None:  # tyro takes Python's words only
            values = [WORDS_OF_BOOL.get(value.lower(), value) for value in values]
        # `--flag=value` is the only way to give a value that looks like a flag.
        joined = len(values) == 1 and values[0].startswith("-")
        words += [f"{typed}={values[0]}"] if joined else [typed, *values]
    return words


def _tyro_class(arguments: Sequence[Argument]) -> Any:
    """A dataclass with a field for each argument; those of a group lie in a nested dataclass of their own."""
    import tyro

    def fields(chosen: list[Argument]) -> list[tuple[str, Any, Any]]:
        return [(a.field.name, _annotated(a), dataclasses.field(**_default(a.field))) for a in chosen]

    common = fields([a for a in arguments if not a.group])
    for group in dict.fromkeys(a.group for a in arguments if a.group):
        options = [a for a in arguments if a.group == group]
        nested: Any = dataclasses.make_dataclass("Options", fields(options), kw_only=True)
        named = Annotated[nested, tyro.conf.arg(name=group, help="")]
        common.append((group_field(options[0]), named, dataclasses.field(default_factory=nested)))
    return dataclasses.make_dataclass("Settings", common, kw_only=True)


def group_field(argument: Argument) -> str:
    """The field that holds the options of an argument's algorithm; no setting has a name like it."""
    return f"options_of_{argument.group.replace('-', '_')}"


def _default(field: Field) -> dict[str, Any]:
    if isinstance(field.default, list):
        return {"default_factory": partial(list, field.default)}
    return {} if field.default is MISSING else {"default": field.default}


def _annotated(argument: Argument) -> Any:
    """The field's type with help, metavar and aliases for tyro."""
    import tyro

    field = argument.field
    switch = field.type is bool
    hint = "(required)" if field.default is MISSING else "" if switch else value_of(field.default)
    shown = None if switch else argument.metavar
    name = argument.flags[0].removeprefix("--") if argument.flags and not argument.group else None
    extra = tyro.conf.arg(
        name=name, help=field.help, metavar=shown, aliases=argument.flags[1:] or None, help_behavior_hint=hint
    )  # fmt: skip
    marks: list[Any] = [] if argument.flags else [tyro.conf.Positional]
    if switch and not argument.off:
        marks.append(tyro.conf.FlagCreatePairsOff)
    return Annotated[(field.type, extra, *marks)]


def _explain(found: Scan, complaint: str) -> str:
    """One line for what tyro refused: the first flag whose values it refuses when they come alone."""
    for argument, typed, values in found.given.values():
        if not _converts(argument, typed, values):
            return f"{typed} is {' '.join(map(repr, values))}, it must be {describe(argument.field.type)}"
    # Unforeseen: what tyro drew, without its frame.
    return re.sub(r"\s+", " ", re.sub(r"[╭╮╰╯│─]", " ", complaint)).strip()


def _converts(argument: Argument, typed: str, values: list[str]) -> bool:
    import tyro

    alone = Scan(given={argument.key: (argument, typed, values)})
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            tyro.cli(_tyro_class([argument]), args=_words(alone), prog="")
    except SystemExit:
        return False
    return True
