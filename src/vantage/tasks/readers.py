"""Reads JSONL, JSON, Parquet and Hub datasets as sequences of rows; every way they can be wrong is one line."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vantage.errors import UserError
from vantage.plugins import did_you_mean, one_line

Row = Mapping[str, Any]
_SCHEMES = ("jsonl", "parquet", "hub")
_SUFFIXES = {".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}


class Rows(Protocol):
    """Anything with random access to mappings: a list, a `datasets.Dataset`, an Arrow table behind `_ArrowRows`."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Row: ...


@dataclass(frozen=True)
class Source:
    """Rows and how to speak of them.

    Attributes:
        rows: The rows.
        name: What the user called the data; messages start with it.
        lines: Line number of every row, for text files.
    """

    rows: Rows
    name: str
    lines: Sequence[int] | None = None

    def place(self, index: int) -> str:
        """`line 18` of a text file, `row 17` (from 0, as Python counts) of anything else."""
        return f"line {self.lines[index]}" if self.lines else f"row {index}"

    @property
    def columnar(self) -> bool:
        """Whether the rows are a table stored by columns, so that all of them have the same ones."""
        return isinstance(self.rows, _ArrowRows) or hasattr(self.rows, "select_columns")

    def columns(self) -> list[str]:
        """Names of the columns, from the first row."""
        return [str(name) for name in self.rows[0]]

    def values(self, column: str) -> Iterator[Any]:
        """All values of a column in order, without reading the other columns where the storage allows it."""
        if isinstance(self.rows, _ArrowRows):
            return self.rows.values(column)
        if hasattr(self.rows, "select_columns"):
            return itertools.chain.from_iterable(
                batch[column] for batch in self.rows.select_columns([column]).iter(batch_size=1000)
            )
        return (self.rows[index][column] for index in range(len(self.rows)))


def is_file_spec(spec: str) -> bool:
    """Whether `read_source` is the one to read it: `jsonl:`, `parquet:`, `hub:`, or a path with a known ending."""
    return spec.partition(":")[0] in _SCHEMES or Path(spec).suffix in _SUFFIXES


def read_source(spec: str, what: str = "--task") -> Source:
    """Open `jsonl:PATH`, `parquet:PATH`, `hub:NAME[:CONFIG][@SPLIT]` or a path with a known ending.

    `what` is the field that the spec was given for; messages start with both.

    Raises:
        UserError: it is missing, can not be read or has no rows.
    """
    scheme, _, location = spec.partition(":")
    if scheme not in _SCHEMES:
        if Path(spec).suffix not in _SUFFIXES:
            raise UserError(f"{what} {spec}: this names no data; use jsonl:PATH, parquet:PATH or hub:NAME")
        scheme, location = _SUFFIXES[Path(spec).suffix], spec
    name = f"{what} {spec}"
    if not location:
        raise UserError(f"{name}: what to read is missing after the colon")
    if scheme == "hub":
        source = _read_hub(location, name)
    else:
        path = Path(location).expanduser()
        if not path.is_file():
            siblings = [sibling.name for sibling in path.parent.glob("*")] if path.parent.is_dir() else []
            raise UserError(f"{name}: there is no file {location!r}{did_you_mean(path.name, siblings)}")
        try:
            source = (_read_json if scheme == "jsonl" else _read_parquet)(path, name)
        except OSError as error:
            raise UserError(f"{name}: it can not be read: {error.strerror or one_line(error)}") from error
    return require_rows(source)


def source_of(data: Any, name: str) -> Source:
    """The rows of a `datasets.Dataset`, of a list of mappings, or of anything with random access to mappings.

    Raises:
        UserError: it is something else, or empty.
    """
    advice = "it must be a datasets.Dataset or a sequence of mappings, one a row"
    kind = type(data).__name__
    if kind in ("DatasetDict", "IterableDatasetDict"):
        split = next(iter(data), "train")
        raise UserError(f'{name}: this is a {kind}; choose one of its splits, as in data["{split}"]')
    if kind == "IterableDataset":
        raise UserError(f"{name}: this is a stream, {advice}; leave streaming=True out")
    if kind == "DataFrame":
        raise UserError(f'{name}: this is a DataFrame, {advice}; pass data.to_dict("records")')
    if isinstance(data, (str, bytes, Mapping)) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise UserError(f"{name}: this is a {kind}, {advice}")
    if hasattr(data, "with_format"):
        data = data.with_format(None)  # a Dataset that gives out tensors gives out Python values as well
    return require_rows(Source(data, name))


def require_rows(source: Source) -> Source:
    """The source itself; raises `UserError` if it is empty or its first row is no mapping."""
    if not len(source.rows):
        raise UserError(f"{source.name}: it has no rows")
    if not isinstance(source.rows[0], Mapping):
        raise UserError(f"{source.name}: {source.place(0)} is a {type(source.rows[0]).__name__}, it must be a mapping")
    return source


class _ArrowRows:
    """A Parquet table, read column by column; rows become Python values when they are asked for."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, index: int, /) -> Row:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        row: Row = self._table.slice(index % len(self), 1).to_pylist()[0]
        return row

    def values(self, column: str) -> Iterator[Any]:
        return (value.as_py() for chunk in self._table.column(column).chunks for value in chunk)


def _read_json(path: Path, name: str) -> Source:
    """One JSON object a line, or one JSON array of objects."""
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"").lstrip(b"\xef\xbb\xbf \t")
    if path.suffix == ".json" and first.startswith(b"["):
        items = _parse(path.read_bytes(), f"{name}: it")
        return Source([_object(item, f"{name}: row {index}") for index, item in enumerate(items)], name)
    rows: list[Row] = []
    lines: list[int] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                place = f"{name}: line {number}"
                rows.append(_object(_parse(line, place), place))
                lines.append(number)
    return Source(rows, name, lines)


def _parse(text: bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not valid JSON ({one_line(error)})") from error


def _object(item: Any, place: str) -> Row:
    if not isinstance(item, dict):
        raise UserError(f'{place} is a JSON {type(item).__name__}, it must be an object such as {{"prompt": ...}}')
    return item


def _read_parquet(path: Path, name: str) -> Source:
    import pyarrow
    import pyarrow.parquet

    try:
        return Source(_ArrowRows(pyarrow.parquet.read_table(path)), name)
    except pyarrow.ArrowException as error:
        raise UserError(f"{name}: it is no readable Parquet file ({one_line(error)})") from error


def _read_hub(location: str, name: str) -> Source:
    repository, _, split = location.partition("@")
    dataset, _, config = repository.partition(":")
    return hub_split(dataset, config or None, split or "train", name)


def hub_split(dataset: str, config: str | None, split: str, name: str, alias: str = "") -> Source:
    """One split of a dataset of the Hub, or of a copy in the folder that the environment variable VANTAGE_DATA names.

    A copy is looked for in `$VANTAGE_DATA/ALIAS`, then `$VANTAGE_DATA/OWNER/NAME`, then `$VANTAGE_DATA/NAME`. It is the
    repository as it is on the Hub, a folder with a file for each split (`train.jsonl`, `test.parquet`, ...), or what
    `save_to_disk` wrote. Without one, `datasets` looks into its cache and on the Hub.

    Raises:
        UserError: it can not be had; the message, which begins with `name`, says why.
    """
    import datasets

    folder = local_copy(alias, dataset)
    try:
        if folder is None:
            return Source(datasets.load_dataset(dataset, config, split=split), name)
        return Source(_read_copy(folder, config, split), name)
    except ConnectionError as error:
        place = f"$VANTAGE_DATA/{alias or dataset}"
        raise UserError(
            f"{name}: {dataset} is not in the cache and the Hub can not be reached; get it where there is a network, or "
            f"put its files, one for each split such as {split}.jsonl or {split}.parquet, into {place}"
        ) from error
    except Exception as error:  # the library raises a dozen types; each message says what to mend
        place = f" from {folder}" if folder else ""
        raise UserError(f"{name}: the dataset does not load{place}: {one_line(error, 400)}") from error


def local_copy(alias: str, dataset: str) -> Path | None:
    """The folder below VANTAGE_DATA with a copy of a dataset; None if there is none."""
    root = os.environ.get("VANTAGE_DATA")
    if not root:
        return None
    places = [Path(root).expanduser() / name for name in (alias, dataset, dataset.rpartition("/")[2]) if name]
    return next((place for place in places if place.is_dir()), None)


def _read_copy(folder: Path, config: str | None, split: str) -> Any:
    import datasets

    if (folder / "dataset_dict.json").is_file():
        return datasets.load_from_disk(str(folder))[split]
    if config is not None and (folder / config).is_dir() and not (folder / "README.md").is_file():
        return datasets.load_dataset(str(folder / config), split=split)
    # Only a README of the Hub says which configurations there are; a plain folder has one, the default.
    known = datasets.get_dataset_config_names(str(folder))
    return datasets.load_dataset(str(folder), config if config in known else None, split=split)
