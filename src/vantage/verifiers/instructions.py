"""Does a response follow the instructions that its prompt gave? The columns, and strict and loose accuracy, of IFEval.

Source: Zhou et al., arXiv 2311.07911, §2; the families are in `vantage.verifiers.constraints`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from vantage.plugins import did_you_mean
from vantage.verifiers.constraints import FAMILIES
from vantage.verifiers.guarded import LIMITS, Guarded
from vantage.verifiers.thinking import after_thinking
from vantage.verifiers.workers import WorkerLimits

MAX_CHARACTERS = 1_000_000
"""A longer response follows nothing."""


class InstructionVerifier:
    """1 if a response follows all instructions of its problem; with `share`, the share of them that it follows.

    The columns are IFEval's: `instruction_id_list`, a list of ids, and `kwargs`, a list with the arguments of each, where
    arguments that are `None` count as left out; either may be JSON in a string. Thinking before `</think>` is no part of
    the response, and an empty response follows nothing.

    It judges in the process that calls it. `isolated` gives one that judges in worker processes, as `--reward instructions`
    does.

    Args:
        share: Number of followed over number of all instructions, instead of 1 or 0.
        loose: An instruction is also followed if it is after leaving out the first line, the last or both, the asterisks
            of markdown, or these together (the paper's loose accuracy).
        ids_column, kwargs_column: Names of the columns.
    """

    name = "instructions"
    version = "1"

    def __init__(
        self,
        *,
        share: bool = False,
        loose: bool = False,
        ids_column: str = "instruction_id_list",
        kwargs_column: str = "kwargs",
    ) -> None:
        self.share = share
        self.loose = loose
        self.ids_column = ids_column
        self.kwargs_column = kwargs_column

    def score(self, text: str, columns: Mapping[str, Any]) -> float | None:
        """0 to 1, or `None` where the columns can not be read (`complaint` says why)."""
        found = self.followed(text, columns)
        if found is None:
            return None
        return sum(found) / len(found) if self.share else float(all(found))

    def followed(self, text: str, columns: Mapping[str, Any]) -> list[bool] | None:
        """For every instruction whether the response follows it; `None` where the columns can not be read."""
        try:
            instructions = self._read(columns)
        except InstructionsError:
            return None
        if len(text) > MAX_CHARACTERS:
            return [False] * len(instructions)
        text = after_thinking(text)
        variants = [variant for variant in (loose_variants(text) if self.loose else [text]) if variant.strip()]
        return [
            any(FAMILIES[name].check(variant, **arguments) for variant in variants) for name, arguments in instructions
        ]

    def complaint(self, columns: Mapping[str, Any]) -> str | None:
        """What is wrong with a problem's columns, in one line; `None` if nothing."""
        try:
            self._read(columns)
        except InstructionsError as error:
            return str(error)
        return None

    def _read(self, columns: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """Ids and arguments of the instructions; raises `InstructionsError`."""
        names = _listed(columns.get(self.ids_column), self.ids_column)
        if not names:
            raise InstructionsError(f"column {self.ids_column!r} names no instructions")
        given = columns.get(self.kwargs_column)
        arguments = [None] * len(names) if given is None else _listed(given, self.kwargs_column)
        if len(arguments) != len(names):
            raise InstructionsError(
                f"column {self.kwargs_column!r} has {len(arguments)} entries for {len(names)} instructions"
            )
        return [(name, _arguments(name, entry)) for name, entry in zip(names, arguments, strict=True)]


def isolated(*, workers: int | None = None, limits: WorkerLimits = LIMITS, **options: Any) -> Guarded:
    """The verifier in worker processes, behind a cache: no response can hang, crash or fill the run.

    Args:
        workers: processes; by default one a core, at most 8.
        limits: time and memory of each; 5 s for one response.
        options: see `InstructionVerifier`.
    """
    columns = (str(options.get("ids_column", "instruction_id_list")), str(options.get("kwargs_column", "kwargs")))
    return Guarded(
        "vantage.verifiers.instructions:InstructionVerifier", options, columns=columns, workers=workers, limits=limits
    )


class InstructionsError(ValueError):
    """Columns that can not be read."""


def loose_variants(text: str) -> list[str]:
    """The eight texts of loose accuracy: all, or without the first line, the last or both; each also without asterisks."""
    lines = text.split("\n")
    parts = [text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*parts, *(part.replace("*", "") for part in parts)]


def _listed(value: Any, column: str) -> Sequence[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InstructionsError(f"column {column!r} is text that is not JSON") from error
    if not isinstance(value, list | tuple):
        raise InstructionsError(f"column {column!r} must be a list, not {type(value).__name__}")
    return value


def _arguments(name: Any, entry: Any) -> dict[str, Any]:
    """The arguments of an instruction that are not left out, checked; raises `InstructionsError`."""
    if not isinstance(name, str) or name not in FAMILIES:
        raise InstructionsError(f"there is no instruction {name!r}{did_you_mean(str(name), FAMILIES)}")
    if entry is not None and not isinstance(entry, Mapping):
        raise InstructionsError(f"the arguments of {name} must be a mapping, not {type(entry).__name__}")
    given = {key: value for key, value in (entry or {}).items() if value is not None}
    needed = FAMILIES[name].arguments
    for key in given:
        if key not in needed:
            hint = did_you_mean(str(key), needed) or f"; it has: {', '.join(needed) or 'none'}"
            raise InstructionsError(f"{name} has no argument {key!r}{hint}")
    for key, argument in needed.items():
        if key not in given:
            raise InstructionsError(f"{name} needs {key}, {argument.kind}")
        if not argument.right(given[key]):
            raise InstructionsError(f"{name}: {key} is {given[key]!r:.60}; it must be {argument.kind}")
    return given
