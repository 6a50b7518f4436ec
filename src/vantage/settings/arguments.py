"""Which words of a command line belong to which flag? Finds unknown flags and missing values before anything is parsed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vantage.errors import UserError
from vantage.plugins import did_you_mean
from vantage.settings.fieldtypes import Field, counts, describe, flag, metavar, optional

_NEGATIVE_NUMBER = re.compile(r"-(\.?\d|inf|nan)")
HELP = ("-h", "--help")


@dataclass(frozen=True)
class Argument:
    """A flag, or a positional argument, which has no flags."""

    field: Field
    flags: tuple[str, ...] = ()
    """The spelling that messages use comes first."""
    group: str = ""
    """Name of the algorithm whose option it is."""
    metavar: str = ""
    off: str = ""
    """The flag that switches it off, where it is a switch of an algorithm."""

    @property
    def key(self) -> str:
        """Its name in the result: `steps`, `poise.layer`."""
        return f"{self.group}.{self.field.name}" if self.group else self.field.name

    @property
    def shown(self) -> str:
        """What messages and the help call it."""
        return self.flags[0] if self.flags else self.metavar

    @property
    def many(self) -> bool:
        """Whether any number of values is fine."""
        return counts(self.field.type)[1] == float("inf")


@dataclass
class Scan:
    """The words of a command line, sorted."""

    positionals: list[str] = field(default_factory=list)
    too_many: str = ""
    """What to say if the last positional was meant as one more value of the flag before it; empty without a flag."""
    given: dict[str, tuple[Argument, str, list[str]]] = field(default_factory=dict)
    """By key: argument, the flag as it was typed (or its main spelling), values."""
    help: bool = False


def arguments_of(
    fields: Mapping[str, Field],
    *,
    positional: Collection[str] = (),
    metavars: Mapping[str, str] | None = None,
    aliases: Mapping[str, Sequence[str]] | None = None,
    group: str = "",
) -> list[Argument]:
    """An argument for each field: `--steps`, below a group `--poise.layer`; those in `positional` have no flag."""
    prefix = f"--{group.replace('_', '-')}."
    made = []
    for name, found in fields.items():
        shown = (metavars or {}).get(name) or metavar(found.type)
        dashed = name.replace("_", "-")
        main = prefix + dashed if group else flag(name)
        flags = () if name in positional else (main, *(aliases or {}).get(name, ()))
        off = f"{prefix}no-{dashed}" if group and found.type is bool else ""
        made.append(Argument(found, flags, group, shown, off))
    return made


def scan(argv: Sequence[str], arguments: Sequence[Argument], unknown: Callable[[str], str] | None = None) -> Scan:
    """Sort the words of a command line.

    Args:
        argv: The words.
        arguments: What the command takes.
        unknown: What to say of an unknown flag. Without it, unknown flags are skipped together with the words behind
            them (up to a flag or a YAML file): a first look, which finds out what decides on the flags that there are.

    Raises:
        UserError: a flag without its values, an unknown flag, a word that belongs to nothing.
    """
    table = {flag: argument for argument in arguments for flag in (*argument.flags, argument.off) if flag}
    allowed = sum(float("inf") if a.many else 1 for a in arguments if not a.flags)
    found, words, last = Scan(), list(argv), ""
    while words:
        word = words.pop(0)
        typed, equals, value = word.partition("=")
        if not is_flag(word):
            if len(found.positionals) >= allowed:
                raise UserError(_too_many(word, table.get(last)) or f"{word!r} is one argument too many; leave it out")
            found.positionals.append(word)
            found.too_many = _too_many(word, table.get(last))
        elif word in HELP:
            found.help = True
        elif (last := typed.replace("_", "-")) in table:
            _add(found, table[last], last, [value] if equals else _take(words, table[last], last), bool(equals))
        elif unknown:
            raise UserError(unknown(typed))
        else:
            while words and not is_flag(words[0]) and not words[0].endswith((".yaml", ".yml")):
                words.pop(0)
    return found


def is_flag(word: str) -> bool:
    """Whether a word is a flag and no value; negative numbers are values."""
    return len(word) > 1 and word.startswith("-") and not _NEGATIVE_NUMBER.match(word)


def _take(words: list[str], argument: Argument, flag: str) -> list[str]:
    """Remove the values of a flag from the front of `words`."""
    least, most = counts(argument.field.type)
    if optional(argument.field.type) and words and words[0] == "None":
        return [words.pop(0)]
    values: list[str] = []
    while words and len(values) < most and not is_flag(words[0]):
        values.append(words.pop(0))
    if len(values) < least:
        wanted = describe(argument.field.type)
        if not values:
            raise UserError(f"{flag} needs a value: {wanted}" if least == 1 else f"{flag} needs {wanted}")
        raise UserError(f"{flag} needs {wanted}, {len(values)} given: {' '.join(values)}")
    return values


def _add(found: Scan, argument: Argument, flag: str, values: list[str], equals: bool) -> None:
    """Note an occurrence: lists grow when their flag comes again, everything else is replaced."""
    if equals and argument.field.type is bool:
        raise UserError(f"{flag} is a switch and takes no value; leave out '={values[0]}'")
    least, _ = counts(argument.field.type)
    if equals and least > 1 and values != ["None"]:
        raise UserError(f"{flag} needs {describe(argument.field.type)}, with spaces in between and without '='")
    if argument.many and argument.key in found.given:
        values = [*found.given[argument.key][2], *values]
    if len(values) > 1 and any(is_flag(value) for value in values):
        raise UserError(f"{flag}: of several values, none can begin with '-' on the command line; use a YAML file")
    found.given[argument.key] = (argument, flag, values)


def _too_many(word: str, before: Argument | None) -> str:
    """What to say of a word behind a flag that has all its values already; empty if there is no flag before it."""
    if before is None:
        return ""
    low, _ = counts(before.field.type)
    takes = "no value" if before.field.type is bool else "1 value" if low == 1 else f"{low} values"
    return f"{word!r} is one argument too many: {before.shown} takes {takes}"


def unknown_flag(flag: str, arguments: Iterable[Argument]) -> str:
    """What to say of a flag that the command does not have, and the nearest one that it has."""
    arguments = list(arguments)
    flags = [f for a in arguments for f in (*a.flags, a.off) if f] + ["--help"]
    wanted = flag.replace("_", "-")
    ending = [f for f in flags if "." in f and f.rpartition(".")[2] == wanted.lstrip("-")]
    near = ending or difflib.get_close_matches(wanted.lstrip("-"), [f.removeprefix("--") for f in flags], n=1)
    hint = f", did you mean {'--' + near[0].removeprefix('--')!r}?" if near else "; --help lists all"
    return f"there is no flag {flag!r}{hint}"


def unknown_option(flag: str, name: str, arguments: Iterable[Argument], algorithms: Sequence[str]) -> str:
    """What to say of a flag that `vantage train` does not have while the algorithm is `name`."""
    arguments = list(arguments)
    head, dot, option = flag.removeprefix("--").partition(".")
    head = head.replace("-", "_")
    if not dot or any(a.flags and a.flags[0].startswith(f"--{head}.") and not a.group for a in arguments):
        return unknown_flag(flag, arguments)
    if head in algorithms and head != name:
        return f"{flag} is an option of {head}, but --algo is {name}; leave it out or add --algo {head}"
    if head != name:
        return f"there is no flag {flag!r}: the algorithm is {name}, its options are --{name}.OPTION"
    return no_such_option(name, option, arguments)


def no_such_option(name: str, option: str, arguments: Iterable[Argument]) -> str:
    """What to say of an option that algorithm `name` does not have, and the nearest one that it has."""
    options = [a.field.name.replace("_", "-") for a in arguments if a.group == name]
    listed = f"; it has: {', '.join(options)}" if options else "; it has none"
    return f"{name} has no option {option!r}{did_you_mean(option.replace('_', '-'), options) or listed}"


def value_of(default: Any) -> str:
    """How the help shows a default; nothing for None and for empty lists, which the help text explains."""
    if default is None or default == () or default == []:
        return ""
    text = " ".join(map(str, default)) if isinstance(default, tuple | list) else str(default)
    return f"(default: {text})"
