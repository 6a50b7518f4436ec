"""YAML ↔ `TrainConfig`: flat field names, `algo: NAME`, and the algorithm's options as a mapping below its name."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vantage.config import TrainConfig, flag, resolve
from vantage.errors import UserError
from vantage.estimators import REGISTRY, algorithm_names, get_algorithm
from vantage.estimators.base import Algorithm
from vantage.plugins import did_you_mean, one_line
from vantage.settings.fieldtypes import Field, coerce, describe, fields_of, members, require_supported

IGNORED = ("versions", "git_commit")
"""Keys that a run adds to its config.yaml for people."""
DEFAULT_ALGORITHM = "poise"
ALGORITHM_DECIDES = ("rollouts_per_prompt", "clip_low", "clip_high", "dual_clip", "aggregation")
"""Fields that `vantage.config.resolve` fills in from the algorithm."""


@dataclass(frozen=True)
class Settings:
    """Field values of a `TrainConfig` that are not all there yet, and the algorithm that they are for."""

    spec: str = DEFAULT_ALGORITHM
    """What `--algo` takes."""
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""
    """What the user should know about a file that was made for another algorithm."""

    @property
    def algorithm(self) -> type[Algorithm]:
        """The class of the algorithm's options."""
        return get_algorithm(self.spec)

    def config(self) -> TrainConfig:
        """The configuration, defaults filled in; raises `UserError` as `TrainConfig` does."""
        return TrainConfig(**self.values, algo=self.algorithm(**self.options))


def train_fields() -> dict[str, Field]:
    """Fields of `TrainConfig` by name; `algo` is the text that names an algorithm."""
    fields = fields_of(TrainConfig)
    fields["algo"] = dataclasses.replace(fields["algo"], type=str, default=DEFAULT_ALGORITHM)
    return fields


def option_fields(algorithm: type[Algorithm]) -> dict[str, Field]:
    """Options of an algorithm by name; raises `UserError` for a class that no flag and no YAML could configure."""
    name_of(algorithm)
    fields = fields_of(algorithm)
    require_supported(algorithm, fields)
    return fields


def name_of(algorithm: type[Algorithm]) -> str:
    """The name that its options stand below; raises `UserError` if it has none, or one that means something else."""
    name, cls = getattr(algorithm, "name", None), algorithm.__name__
    if not isinstance(name, str) or not name.replace("-", "_").isidentifier():
        raise UserError(f"--algo: {cls} needs a class attribute `name`, a word of letters, digits and _")
    if name in train_fields() or name in IGNORED:
        raise UserError(f"--algo: {cls} calls itself {name!r}, which is a field of TrainConfig; rename it")
    return name


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds, empty for an empty file; raises `UserError` in one line otherwise."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except IsADirectoryError as error:
        inside = Path(path) / "config.yaml"
        hint = f"did you mean {str(inside)!r}?" if inside.is_file() else "give a YAML file"
        raise UserError(f"CONFIG {path}: this is a folder; {hint}") from error
    except FileNotFoundError as error:
        folder = Path(path).parent
        near = did_you_mean(Path(path).name, [p.name for p in folder.glob("*.y*ml")])
        raise UserError(f"CONFIG {path}: there is no such file{near}") from error
    except OSError as error:
        raise UserError(f"CONFIG {path}: can not be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"CONFIG {path}: this is not a text file in UTF-8; give a YAML file") from error
    try:
        found = yaml.load(text, _StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"CONFIG {path}: this is not valid YAML: {one_line(error)}") from error
    if found is not None and not isinstance(found, dict):
        raise UserError(f"CONFIG {path}: expected `key: value` lines, found {type(found).__name__}; see --dry-run")
    return found or {}


class _StrictLoader(yaml.SafeLoader):
    """The safe loader, except that a key that comes twice is an error: plain YAML lets the last one win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1 and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} comes twice", node.start_mark)
        return super().construct_mapping(node, deep)


def settings_of(mapping: Mapping[Any, Any], where: str, algo: str | None = None) -> Settings:
    """Check names and types of a YAML mapping.

    Args:
        mapping: What the file holds.
        where: The file, for messages.
        algo: What `--algo` was given, which overrides the file. Options of the file's own algorithm are then dropped.

    Raises:
        UserError: an unknown key, a value of another type, options of an algorithm that is not the file's.
    """
    fields = train_fields()
    own = _value(where, "algo", mapping.get("algo", DEFAULT_ALGORITHM), fields["algo"])
    with _Prefix(where):
        own_name = own if own in REGISTRY else name_of(get_algorithm(own))
    algorithm = get_algorithm(algo) if algo else get_algorithm(own)
    known = option_fields(algorithm)
    values: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for key, value in mapping.items():
        if key == algorithm.name:
            options = _options(where, algorithm.name, value, known)
        elif key in fields:
            values[key] = _value(where, key, value, fields[key])
        elif key not in IGNORED and key != own_name:
            raise UserError(f"{where}: {_unknown(key, fields, algorithm.name, known)}")
    values.pop("algo", None)
    other = own_name != algorithm.name
    return Settings(algo or own, values, options, _note(where, own_name, algorithm.name, mapping) if other else "")


def _options(where: str, name: str, block: Any, known: Mapping[str, Field]) -> dict[str, Any]:
    if block is None:
        return {}
    if not isinstance(block, dict):
        raise UserError(
            f"{where}: {name} is {block!r}, it must be a mapping of options, such as {name}: {{OPTION: VALUE}}"
        )
    for key in block:
        if key not in known:
            listed = f"; it has: {', '.join(known)}" if known else "; it has none"
            raise UserError(f"{where}: {name} has no option {key!r}{did_you_mean(str(key), known) or listed}")
    return {key: _value(where, f"{name}.{key}", value, known[key]) for key, value in block.items()}


def _value(where: str, key: str, value: Any, field: Field) -> Any:
    try:
        return coerce(value, field.type)
    except ValueError:
        quotes = " (put it in quotes)" if str in members(field.type) and not isinstance(value, dict | list) else ""
        raise UserError(f"{where}: {key} is {_shown(value)}, it must be {describe(field.type)}{quotes}") from None


def _shown(value: Any) -> str:
    text = yaml.safe_dump(value).split("\n")[0] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _unknown(key: Any, fields: Mapping[str, Field], name: str, known: Mapping[str, Field]) -> str:
    head, _, option = str(key).partition(".")
    if key in algorithm_names():
        return f"{key} are options of another algorithm, the file has algo {name}; remove them or set algo: {key}"
    if (head == name and option in known) or key in known:
        return f"there is no key {str(key)!r}; options of {name} stand below it, {name}: {{{option or key}: VALUE}}"
    return (
        f"there is no key {str(key)!r}{did_you_mean(str(key), [*fields, name]) or '; vantage train --help lists all'}"
    )


def _note(where: str, own: str, name: str, mapping: Mapping[Any, Any]) -> str:
    """What became of a file that was made for algorithm `own` when another one runs; empty if nothing did."""
    kept = [key for key in ALGORITHM_DECIDES if mapping.get(key) is not None]
    parts = [f"its options of {own} are not used"] if mapping.get(own) else []
    parts += [f"used as they stand there: {', '.join(kept)}"] if kept else []
    return f"{where} is for {own} and --algo is {name}: {'; '.join(parts)}" if parts else ""


class _Prefix:
    """Context in which a `UserError` gets the file's name in front."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UserError):
            raise UserError(f"{self.where}: {error}") from error


def load_yaml_config(path: str | Path) -> TrainConfig:
    """The configuration in a YAML file, such as RUN/config.yaml; raises `UserError` naming file, key and fix."""
    settings = settings_of(read_yaml(path), str(path))
    with _Prefix(str(path)):
        return settings.config()


def refuse_other(run: Path, asked: TrainConfig, may_differ: Collection[str], fix: str) -> None:
    """Raise `UserError` if the run in a folder was made with another configuration than `asked`, a resolved one.

    A key that the run's file lacks, because the version that wrote it did not have it yet, counts as what `resolve` makes
    of it. What the task proposes (length, stop, reward range) is taken from `asked` then.

    Args:
        run: The folder, with a config.yaml.
        asked: What is to go on there.
        may_differ: Names of the fields that do not matter.
        fix: What to do about a difference, the end of the message.
    """
    before = resolve(
        load_yaml_config(run / "config.yaml"),
        max_new_tokens=asked.max_new_tokens,
        stop=asked.stop or (),
        reward_range=asked.reward_range or (0.0, 1.0),
    )
    for field in dataclasses.fields(asked):
        old, new = getattr(before, field.name), getattr(asked, field.name)
        if field.name not in may_differ and old != new:
            raise UserError(f"{flag(field.name)} is {_cut(new)}, but the run in {run} has {_cut(old)}; {fix}")


def _cut(value: Any) -> str:
    text = str(value)
    return text if len(text) < 60 else text[:57] + "..."


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain values in the order of the fields, the algorithm's options below its name at the end."""
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        plain[field.name] = spec_of(value) if field.name == "algo" else _plain(value)
    options = {field.name: _plain(getattr(config.algo, field.name)) for field in dataclasses.fields(config.algo)}
    return plain | ({config.algo.name: options} if options else {})


def spec_of(algorithm: Algorithm) -> str:
    """What `--algo` takes to get this class: its registered name, else FILE.py:CLASS."""
    cls = type(algorithm)
    if algorithm.name in algorithm_names() and get_algorithm(algorithm.name) is cls:
        return algorithm.name
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if file is None:
        return algorithm.name  # made in a shell: there is no file to name
    path = Path(file)
    return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{cls.__qualname__}"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def dump_yaml(config: TrainConfig) -> str:
    """The configuration as YAML that `load_yaml_config` and `vantage train` read back."""
    return yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True, width=1000)
