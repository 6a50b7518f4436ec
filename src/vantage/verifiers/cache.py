"""Has this response been judged before? Verdicts by verifier, version, text and columns, in memory and on disk.

Groups repeat answers, epochs repeat problems, and a comparison of algorithms repeats runs. A verdict with a note is kept in
memory only, so that one hanging text is not paid for twice; on disk, where the next run would find it, it could be the work of
a busy machine. What can not be told apart for certain (an object of an unknown class) is not cached.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vantage.errors import UserError
from vantage.verifiers.base import BatchVerifier, Verdict, Verifier, judge

SOME = 500
"""Keys in a query; sqlite takes at least 999."""
DEEPEST = 50


class VerdictCache:
    """Verdicts by key; least recently used ones go first. Safe for threads; the file also for processes.

    Args:
        most: verdicts to keep in memory, at least 1.
        path: a file to keep them in beyond this process (sqlite), made with its folder if it is not there; it grows by about
            100 bytes a verdict. A file that fails later on (a full disk) is let go of, the memory remains.

    Raises:
        UserError: `most` is below 1, or the file can not be used.
    """

    def __init__(self, most: int = 100_000, path: str | os.PathLike[str] | None = None) -> None:
        if most < 1:
            raise UserError(f"verifier cache: most must be 1 or more, got {most}")
        self.most = most
        self.hits = self.misses = 0
        self._memory: OrderedDict[bytes, Verdict] = OrderedDict()
        self._lock = threading.Lock()
        self._disk = None if path is None else _opened(Path(path).expanduser())
        self._pid = os.getpid()

    def __len__(self) -> int:
        """Verdicts in memory."""
        return len(self._memory)

    def get(self, keys: Iterable[bytes | None]) -> list[Verdict | None]:
        """What is known, None where nothing is; a key of None is never known."""
        keys = list(keys)
        with self._lock:
            wanted = {key for key in keys if key is not None}
            found = {key: self._memory[key] for key in wanted if key in self._memory}
            for key in found:
                self._memory.move_to_end(key)
            absent = [key for key in wanted if key not in found]
            for key, verdict in self._read(absent):
                found[key] = verdict
                self._keep(key, verdict)
            verdicts = [None if key is None else found.get(key) for key in keys]
            known = sum(verdict is not None for verdict in verdicts)
            self.hits, self.misses = self.hits + known, self.misses + len(keys) - known
        return verdicts

    def put(self, found: Iterable[tuple[bytes | None, Verdict]]) -> None:
        """Remember verdicts; those under None are not remembered."""
        with self._lock:
            lasting = []
            for key, verdict in found:
                if key is not None:
                    self._keep(key, verdict)
                    lasting += [(key, verdict.score)] if verdict.note is None else []
            self._on_disk("executemany", "INSERT OR REPLACE INTO verdicts VALUES (?, ?)", lasting)

    def close(self) -> None:
        """Close the file; the memory remains."""
        with self._lock:
            if self._disk is not None:
                self._disk.close()
                self._disk = None

    def _keep(self, key: bytes, verdict: Verdict) -> None:
        self._memory[key] = verdict
        self._memory.move_to_end(key)
        while len(self._memory) > self.most:
            self._memory.popitem(last=False)

    def _read(self, keys: Sequence[bytes]) -> list[tuple[bytes, Verdict]]:
        rows: list[tuple[bytes, Any]] = []
        for start in range(0, len(keys), SOME):
            some = keys[start : start + SOME]
            query = f"SELECT key, score FROM verdicts WHERE key IN ({', '.join('?' * len(some))})"
            rows += self._on_disk("execute", query, some)
        return [(bytes(key), Verdict(None if score is None else float(score))) for key, score in rows]

    def _on_disk(self, method: Literal["execute", "executemany"], query: str, values: Sequence[Any]) -> list[Any]:
        # A connection must not be used after a fork: it holds locks of the parent.
        if self._disk is None or os.getpid() != self._pid:
            return []
        try:
            with self._disk:
                return list(getattr(self._disk, method)(query, values))
        except sqlite3.Error:
            self._disk = None
            return []


class Cached(BatchVerifier):
    """A verifier that asks a cache first. Equal responses in one batch are judged once.

    Args:
        verifier: what is asked where the cache knows nothing.
        cache: by default one of its own, in memory.
        columns: names of the columns that the verifier reads; others are not part of the key. None: all are.
    """

    def __init__(
        self, verifier: Verifier, cache: VerdictCache | None = None, columns: Sequence[str] | None = None
    ) -> None:
        self.name, self.version = verifier.name, verifier.version
        self.verifier, self.cache = verifier, cache if cache is not None else VerdictCache()
        self.columns = None if columns is None else frozenset(columns)

    def judge(self, texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """A verdict a response."""
        read = rows if self.columns is None else [{n: row[n] for n in row.keys() & self.columns} for row in rows]
        keys = [key_of(self.verifier, text, row) for text, row in zip(texts, read, strict=True)]
        found = self.cache.get(keys)
        first: dict[bytes | int, int] = {}  # key, or place of what has none → place of the first one
        for index, (key, verdict) in enumerate(zip(keys, found, strict=True)):
            if verdict is None:
                first.setdefault(index if key is None else key, index)
        places = list(first.values())
        new = judge(self.verifier, [texts[i] for i in places], [rows[i] for i in places]) if places else []
        self.cache.put((keys[place], verdict) for place, verdict in zip(places, new, strict=True))
        by_place = dict(zip(places, new, strict=True))
        return [
            verdict or by_place[first[index if key is None else key]]
            for index, (key, verdict) in enumerate(zip(keys, found, strict=True))
        ]

    def complaint(self, columns: Mapping[str, Any]) -> str | None:
        """What the verifier says is wrong with the columns of a row; None if nothing."""
        look = getattr(self.verifier, "complaint", None)
        said: str | None = look(columns) if look is not None else None
        return said


def key_of(verifier: Verifier, text: str, columns: Mapping[str, Any]) -> bytes | None:
    """Sixteen bytes that stand for a verifier, its version, a text and columns; None if the columns have no certain form."""
    try:
        content = json.dumps(_plain([verifier.name, verifier.version, text, dict(columns)]))
    except (TypeError, RecursionError):
        return None
    return hashlib.blake2b(content.encode("ascii"), digest_size=16).digest()


def _plain(value: Any, depth: int = 0) -> Any:
    """JSON that differs whenever values do, types included; TypeError for what is not plain data."""
    if depth > DEEPEST:
        raise TypeError
    kind = type(value)
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return {"i": hex(value)}  # decimal digits of a huge one take their time
    if kind is float:
        return {"f": value.hex()}
    if kind in (bytes, bytearray):
        return {"b": value.hex()}
    if kind in (list, tuple):
        return {kind.__name__: [_plain(item, depth + 1) for item in value]}
    if kind in (set, frozenset):
        return {"set": sorted(json.dumps(_plain(item, depth + 1)) for item in value)}
    if isinstance(value, Mapping):
        pairs = [[json.dumps(_plain(key, depth + 1)), _plain(item, depth + 1)] for key, item in value.items()]
        return {"d": sorted(pairs, key=lambda pair: pair[0])}
    if kind.__module__ == "numpy" and hasattr(value, "dtype") and hasattr(value, "tolist"):
        return {"n": [str(value.dtype), _plain(value.tolist(), depth + 1)]}
    raise TypeError


def _opened(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        disk = sqlite3.connect(path, timeout=5.0, check_same_thread=False)
        with disk:
            disk.execute("PRAGMA synchronous = OFF")  # losing verdicts in a power cut only costs judging again
            disk.execute("CREATE TABLE IF NOT EXISTS verdicts (key BLOB PRIMARY KEY, score REAL) WITHOUT ROWID")
            disk.execute("SELECT key, score FROM verdicts LIMIT 1").fetchall()
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"verifier cache: {str(path)!r} can not be used as its file: {error}") from error
    return disk
