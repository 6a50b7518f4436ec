"""What has a program to do, according to the columns of a row? The forms that code datasets use, made one.

- **stdin**: `inputs` and `outputs`, a text each; also a list of `{"input", "output"}`.
- **call**: the same with `fn_name`: an input is the list of arguments (or, as in LiveCodeBench, JSON with one argument a
  line; or an object of named arguments), an output is what the function returns.
- **unit**: Python source with assertions, one text or a list of texts; `entry_point` beside a `check(candidate)` as in
  HumanEval; a setup column as in MBPP.

A cell may hold the thing itself or JSON of it, as verl's `ground_truth` does. Pickled cells are not read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

CELLS = ("tests", "test_cases", "input_output", "test_list", "test", "private_test_cases", "public_test_cases",
         "ground_truth", "reward_model")  # fmt: skip
"""Columns that are looked into, in this order, where none is named; `inputs` with `outputs` goes before them."""
SETUP = ("test_setup_code", "test_imports", "setup")
FUNCTION = ("fn_name", "func_name", "function_name")
SOURCES = ("assert_case", "tests", "test_list")


@dataclass(frozen=True)
class Problem:
    """Tests of a program."""

    kind: Literal["stdin", "call", "unit"]
    inputs: tuple[Any, ...] = ()
    """stdin: texts; call: pairs of a list of arguments and a dict of named ones."""
    outputs: tuple[Any, ...] = ()
    """stdin: texts; call: plain data."""
    function: str = ""
    """call: what to call; unit: what `check` is given."""
    sources: tuple[str, ...] = ()
    """unit: pieces of Python."""
    setup: str = ""
    """unit: Python that goes before."""


def read_problem(columns: Mapping[str, Any], column: str | None = None) -> Problem:
    """The tests of a row. Raises ValueError that says what is missing or malformed.

    Args:
        columns: the row.
        column: where the tests are; by default the first one of `inputs` with `outputs` and `CELLS` that is there.
    """
    if column is not None:
        if columns.get(column) is None:
            raise ValueError(f"no column {column!r}")
        cell = columns[column]
    elif columns.get("inputs") is not None and columns.get("outputs") is not None:
        cell = {name: columns[name] for name in ("inputs", "outputs")}
    else:
        name = next((name for name in CELLS if _filled(columns.get(name))), None)
        if name is None:
            raise ValueError(f"no column with tests: needs inputs and outputs, or one of {', '.join(CELLS)}")
        cell = columns[name]
    return _from_cell(_opened(cell), columns)


def _filled(cell: Any) -> bool:
    return cell is not None and (not hasattr(cell, "__len__") or len(cell) > 0)


def _opened(cell: Any) -> Any:
    """A cell with JSON in it read; NumPy's arrays, which Parquet readers give, as lists."""
    if hasattr(cell, "tolist"):
        cell = cell.tolist()
    if isinstance(cell, str) and cell.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(cell)
        except (ValueError, RecursionError):
            return cell
    return cell


def _from_cell(cell: Any, columns: Mapping[str, Any]) -> Problem:
    if isinstance(cell, Mapping):
        if "ground_truth" in cell:
            return _from_cell(_opened(cell["ground_truth"]), columns)
        source = next((name for name in SOURCES if _filled(cell.get(name))), None)
        if "inputs" in cell and "outputs" in cell:
            return _pairs(_listed(cell["inputs"]), _listed(cell["outputs"]), _function(cell, columns))
        if source is None:
            raise ValueError(f"tests with the keys {', '.join(map(str, cell))[:100]}, not inputs and outputs")
        return _from_cell(_opened(cell[source]), columns)
    if isinstance(cell, str):
        return _unit([cell], columns)
    if isinstance(cell, Sequence) and len(cell):
        if all(isinstance(test, str) for test in cell):
            return _unit(list(cell), columns)
        if all(isinstance(test, Mapping) and "input" in test and "output" in test for test in cell):
            function = _function({}, columns)
            called = function and all(test.get("testtype", "functional") == "functional" for test in cell)
            return _pairs([t["input"] for t in cell], [t["output"] for t in cell], function if called else "")
    raise ValueError("tests are neither inputs and outputs nor Python source")


def _listed(cell: Any) -> list[Any]:
    found = _opened(cell)
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise ValueError(f"inputs and outputs must be lists, got {type(found).__name__}")
    return list(found)


def _function(cell: Mapping[str, Any], columns: Mapping[str, Any]) -> str:
    metadata = _opened(columns.get("metadata"))
    places = (cell, columns, metadata if isinstance(metadata, Mapping) else {})
    return next((str(place[name]) for place in places for name in FUNCTION if place.get(name)), "")


def _pairs(inputs: Sequence[Any], outputs: Sequence[Any], function: str) -> Problem:
    if not inputs or len(inputs) != len(outputs):
        raise ValueError(f"{len(inputs)} inputs for {len(outputs)} outputs")
    if not function:
        return Problem("stdin", tuple(map(_text, inputs)), tuple(map(_text, outputs)))
    read = [_arguments(given, output) for given, output in zip(inputs, outputs, strict=True)]
    return Problem("call", tuple(given for given, _ in read), tuple(output for _, output in read), function)


def _text(cell: Any) -> str:
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Sequence) or hasattr(cell, "tolist"):  # lines
        return "\n".join(map(str, cell))
    return str(cell)


def _arguments(given: Any, output: Any) -> tuple[tuple[list[Any], dict[str, Any]], Any]:
    """Arguments and the expected result of one call, from JSON text where both are text."""
    given, output = (x.tolist() if hasattr(x, "tolist") else x for x in (given, output))
    if isinstance(given, str):
        args = [json.loads(line) for line in given.split("\n") if line.strip()]
        return (args, {}), json.loads(output) if isinstance(output, str) else output
    if isinstance(given, Mapping):
        return ([], dict(given)), output
    return (list(given) if isinstance(given, Sequence) else [given], {}), output


def _unit(sources: Sequence[str], columns: Mapping[str, Any]) -> Problem:
    cells = [_opened(columns.get(name)) for name in SETUP]
    setup = "\n".join("\n".join(cell) if isinstance(cell, list) else str(cell) for cell in cells if _filled(cell))
    kept = tuple(source for source in sources if source.strip())
    if not kept:
        raise ValueError("the tests are empty")
    return Problem("unit", function=str(columns.get("entry_point") or ""), sources=kept, setup=setup)
