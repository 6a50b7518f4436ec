"""The cache of verdicts: the same question is asked once, another one never takes its answer."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from vantage.errors import UserError
from vantage.verifiers.base import Verdict
from vantage.verifiers.cache import Cached, VerdictCache, key_of


@dataclass
class Counting:
    """Scores 1 where the text is the column `a`, raises on `bad`, and remembers what it was asked."""

    name: str = "counting"
    version: str = "1"
    asked: list[str] = field(default_factory=list)

    def score(self, text: str, columns: Mapping[str, Any]) -> float | None:
        self.asked.append(text)
        if text == "bad":
            raise ValueError("no")
        return None if text == "none" else float(text == columns.get("a"))


def test_equal_questions_are_asked_once_within_and_between_batches():
    verifier = Counting()
    cached = Cached(verifier)
    rows = [{"a": "x"}] * 4
    assert cached.score_many(["x", "y", "x", "none"], rows) == [1.0, 0.0, 1.0, None]
    assert cached.score_many(["none", "y", "x", "z"], rows) == [None, 0.0, 1.0, 0.0]
    assert verifier.asked == ["x", "y", "none", "z"]
    assert (cached.cache.hits, cached.cache.misses) == (3, 5)
    assert (cached.name, cached.version) == ("counting", "1")


def test_a_failure_is_remembered_in_memory_with_its_note(tmp_path):
    verifier = Counting()
    path = tmp_path / "verdicts.sqlite"
    cached = Cached(verifier, VerdictCache(path=path))
    failure = Verdict(None, "raised ValueError: no")
    assert cached.judge(["bad", "bad"], [{}, {}]) == cached.judge(["bad", "bad"], [{}, {}]) == [failure, failure]
    assert verifier.asked == ["bad"]
    Cached(verifier, VerdictCache(path=path)).judge(["bad"], [{}])
    assert verifier.asked == ["bad", "bad"]


def test_only_columns_that_are_read_count():
    verifier = Counting()
    cached = Cached(verifier, columns=("a",))
    assert cached.score_many(["x", "x"], [{"a": "x", "b": 1}, {"a": "x", "b": object()}]) == [1.0, 1.0]
    assert verifier.asked == ["x"]


def test_what_has_no_certain_form_is_asked_every_time():
    verifier = Counting()
    cached = Cached(verifier)
    thing = object()
    assert cached.score_many(["x", "x"], [{"a": "x", "b": thing}] * 2) == [1.0, 1.0]
    assert cached.score_many(["x"], [{"a": "x", "b": thing}]) == [1.0]
    assert verifier.asked == ["x"] * 3
    assert len(cached.cache) == 0


QUESTIONS: list[tuple[Counting, str, dict[str, Any]]] = [
    (Counting(), "x", {}),
    (Counting(name="other"), "x", {}),
    (Counting(version="2"), "x", {}),
    (Counting(), "x ", {}),
    (Counting(), "", {"x": ""}),
    (Counting(), "x", {"a": None}),
    (Counting(), "x", {"a": 1}),
    (Counting(), "x", {"a": 1.0}),
    (Counting(), "x", {"a": True}),
    (Counting(), "x", {"a": "1"}),
    (Counting(), "x", {"a": b"1"}),
    (Counting(), "x", {"a": "0x1"}),
    (Counting(), "x", {"a": {"i": "0x1"}}),
    (Counting(), "x", {"a": {1: 2}}),
    (Counting(), "x", {"a": {"1": 2}}),
    (Counting(), "x", {"a": [1, 2]}),
    (Counting(), "x", {"a": (1, 2)}),
    (Counting(), "x", {"a": {1, 2}}),
    (Counting(), "x", {"a": [[1], 2]}),
    (Counting(), "x", {"a": [1, [2]]}),
    (Counting(), "x", {"a": np.array([1, 2])}),
    (Counting(), "x", {"a": np.array([1.0, 2.0])}),
    (Counting(), "x", {"a": float("nan")}),
    (Counting(), "x", {"a": 0.0}),
    (Counting(), "x", {"a": -0.0}),
    (Counting(), "x", {"a": 10**5000}),
    (Counting(), "\ud800", {}),
]


def test_different_questions_have_different_keys():
    keys = [key_of(*question) for question in QUESTIONS]
    assert None not in keys
    assert len(set(keys)) == len(QUESTIONS)


def test_equal_questions_have_equal_keys():
    assert key_of(Counting(), "x", {"a": 1, "b": 2}) == key_of(Counting(), "x", {"b": 2, "a": 1})
    assert key_of(Counting(), "x", {"a": {3, 1, 2}}) == key_of(Counting(), "x", {"a": {1, 2, 3}})


def test_endless_columns_have_no_key():
    endless: list[Any] = []
    endless.append(endless)
    assert key_of(Counting(), "x", {"a": endless}) is None


def test_the_least_recently_used_goes_first():
    cache = VerdictCache(most=2)
    cache.put([(b"a", Verdict(1.0)), (b"b", Verdict(0.0))])
    assert cache.get([b"a"]) == [Verdict(1.0)]
    cache.put([(b"c", Verdict(0.5))])
    assert cache.get([b"a", b"b", b"c", None]) == [Verdict(1.0), None, Verdict(0.5), None]
    assert len(cache) == 2


def test_a_file_outlives_the_process_and_gives_back_more_than_fits_into_a_query(tmp_path):
    path = tmp_path / "folder" / "verdicts.sqlite"
    keys = [n.to_bytes(2, "big") for n in range(1200)]
    first = VerdictCache(path=path)
    first.put((key, Verdict(n / 1200 if n % 3 else None)) for n, key in enumerate(keys))
    first.close()
    second = VerdictCache(most=10, path=path)
    assert second.get(keys) == [Verdict(n / 1200 if n % 3 else None) for n in range(1200)]
    assert len(second) == 10
    assert second.get([b"other"]) == [None]


def test_a_file_that_fails_leaves_the_memory(tmp_path):
    path = tmp_path / "verdicts.sqlite"
    cache = VerdictCache(path=path)
    cache.put([(b"a", Verdict(1.0))])
    with sqlite3.connect(path) as other:
        other.execute("DROP TABLE verdicts")
    cache.put([(b"b", Verdict(0.0))])
    assert cache.get([b"a", b"b", b"c"]) == [Verdict(1.0), Verdict(0.0), None]


def test_a_file_that_can_not_be_used_is_said_at_once(tmp_path):
    (tmp_path / "text").write_text("no database " * 100)
    for path in (tmp_path / "text", tmp_path / "text" / "below", tmp_path):
        with pytest.raises(UserError, match=r"verifier cache: .* can not be used"):
            VerdictCache(path=path)
    with pytest.raises(UserError, match="most must be 1 or more, got 0"):
        VerdictCache(most=0)


def test_threads_share_it(tmp_path):
    cached = Cached(Counting(), VerdictCache(most=50, path=tmp_path / "verdicts.sqlite"))
    wrong: list[str] = []

    def work() -> None:
        for n in range(60):
            if cached.score_many([str(n), "7"], [{"a": "7"}] * 2) != [float(n == 7), 1.0]:
                wrong.append(str(n))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(cached.cache) == 50


def test_a_fork_leaves_the_file_to_its_parent(tmp_path):
    cache = VerdictCache(path=tmp_path / "verdicts.sqlite")
    child = os.fork()
    if child == 0:
        try:
            cache.put([(b"child", Verdict(1.0))])
        finally:
            os._exit(0 if cache.get([b"child"]) == [Verdict(1.0)] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert cache.get([b"child"]) == [None]
