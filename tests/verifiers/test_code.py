"""The code verifier: right programs score 1, wrong ones 0, and no trick turns the second into the first."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from vantage.errors import UserError
from vantage.rewards.limits import TooSlow, within
from vantage.verifiers import code, sandbox
from vantage.verifiers.answers import same_output, same_value
from vantage.verifiers.base import Verdict
from vantage.verifiers.code import CodeVerifier
from vantage.verifiers.inside.peer import LostError, Peer
from vantage.verifiers.inside.wire import NotPlainError, decode, dumps, encode
from vantage.verifiers.levels import Level
from vantage.verifiers.problems import Problem, read_problem
from vantage.verifiers.programs import blocks, find_program
from vantage.verifiers.sandbox import Limits, SandboxError

MB = 1 << 20
LIMITS = Limits(cpu_s=4, memory_bytes=256 * MB, file_bytes=MB, scratch_bytes=4 * MB, output_bytes=50_000)
STRICT = CodeVerifier(wall_s=8, test_s=4, limits=LIMITS)
SHARE = CodeVerifier(wall_s=8, test_s=4, limits=LIMITS, share=True)
PRINTED = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}
CALLED = {"inputs": [[1, 2], [3, 4]], "outputs": [3, 7], "fn_name": "add"}
UNIT = {"test_list": ["assert square(2) == 4", "assert square(3) == 9"]}


def score(program: str, columns: dict[str, Any], verifier: CodeVerifier = STRICT) -> float | None:
    return verifier.score(f"<think>hm</think>Here:\n```python\n{program}\n```\nDone.", columns)


# Where the program is.


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\na\n```", "a\n"),
        ("```python\na\n```\n```python\nb\n```", "b\n"),
        ("```python\na\n```\n```\noutput\n```", "a\n"),
        ("```py\na\n```\n```Python3 title\nb\n```", "b\n"),
        ("```\na\n```\n```c\nb\n```", "b\n"),
        ("```python\na\n```\n<think>```python\nb\n```</think> none", None),
        ("<think>```python\na\n```</think>```python\nb\n```", "b\n"),
        ("```python\na\n```\n<think> and then", None),
        ("1. list\n   ```python\n   if a:\n       b\n   ```", "if a:\n    b\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("```python\na\n```\n```python\ncut of", "a\n"),
        ("```python\ncut of", None),
        ("```python\r\na\r\n```\r\n", "a\r\n"),
        ("```a`b```\n", None),
        ("no program", None),
        ("", None),
    ],
)
def test_program_is_the_last_block_after_the_thinking(text: str, program: str | None) -> None:
    assert find_program(text) == program


def test_text_without_a_block_is_a_program_on_request_only() -> None:
    assert find_program("<think>x</think>print(1)", whole_text=True) == "print(1)"
    assert find_program("```python\nprint(1)", whole_text=True) is None
    assert find_program(" \n", whole_text=True) is None
    assert CodeVerifier(whole_text=True, limits=LIMITS).score("print(sum(map(int, input().split())))", PRINTED) == 1.0


@pytest.mark.parametrize(
    "text", ["`" * 10**6, "```" + "a" * 10**6 + "`", " " * 10**6 + "```", "```\n" * 250_000, "<think>" * 150_000]
)
def test_a_megabyte_made_to_be_slow_is_read_in_time(text: str) -> None:
    start = time.process_time()
    find_program(text)
    assert time.process_time() - start < 2
    assert isinstance(blocks(text), list)


# What is to be done.


@pytest.mark.parametrize(
    "columns",
    [
        CALLED,
        {"ground_truth": json.dumps(CALLED)},
        {"reward_model": {"style": "rule", "ground_truth": json.dumps(CALLED)}},
        {"test_cases": CALLED},
        {"inputs": json.dumps(CALLED["inputs"]), "outputs": json.dumps(CALLED["outputs"]), "fn_name": "add"},
        {"inputs": ["1\n2", "3\n4\n"], "outputs": ["3", "7"], "metadata": '{"func_name": "add"}'},
        {
            "public_test_cases": json.dumps(
                [{"input": f"{a}\n{b}", "output": f"{a + b}", "testtype": "functional"} for a, b in ((1, 2), (3, 4))]
            ),
            "metadata": {"func_name": "add"},
        },
    ],
)
def test_forms_of_call_rows_mean_the_same(columns: dict[str, Any]) -> None:
    calls = (([1, 2], {}), ([3, 4], {}))
    assert read_problem(columns) == Problem("call", calls, (3, 7), "add")


@pytest.mark.parametrize(
    "columns",
    [
        PRINTED,
        {"tests": PRINTED},
        {"ground_truth": json.dumps(PRINTED)},
        {"inputs": [["1 2", ""], ["3 4", ""]], "outputs": [["3", ""], ["7", ""]]},
        {"test_cases": [{"input": "1 2\n", "output": "3\n"}, {"input": "3 4\n", "output": "7\n", "testtype": "stdin"}]},
    ],
)
def test_forms_of_printed_rows_mean_the_same(columns: dict[str, Any]) -> None:
    assert read_problem(columns) == Problem("stdin", ("1 2\n", "3 4\n"), ("3\n", "7\n"))


def test_forms_of_unit_rows() -> None:
    assert read_problem({"test": "assert f()", "entry_point": "f"}) == Problem(
        "unit", function="f", sources=("assert f()",)
    )
    row = {
        "test_list": ["assert f()", " ", "assert g()"],
        "test_setup_code": "import math",
        "test_imports": ["import re"],
    }
    assert read_problem(row) == Problem("unit", sources=("assert f()", "assert g()"), setup="import math\nimport re")
    assert read_problem({"ground_truth": json.dumps(["assert f()"])}).sources == ("assert f()",)
    assert read_problem({"mine": "assert f()", "tests": PRINTED}, column="mine").sources == ("assert f()",)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "no column with tests"),
        ({"tests": None, "answer": "4"}, "no column with tests"),
        ({"inputs": ["1"], "outputs": []}, "1 inputs for 0 outputs"),
        ({"inputs": [], "outputs": []}, "0 inputs"),
        ({"inputs": "1", "outputs": "2"}, "must be lists"),
        ({"tests": {"input": "1"}}, "keys input"),
        ({"tests": [1, 2]}, "neither"),
        ({"tests": [" "]}, "empty"),
        ({"tests": 5}, "neither"),
    ],
)
def test_rows_without_tests_are_unscorable(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_problem(columns)
    assert score("print(1)", columns) is None


def test_column_by_name_that_is_not_there_is_unscorable() -> None:
    with pytest.raises(ValueError, match="'mine'"):
        read_problem(PRINTED, column="mine")


# When outputs agree.


@pytest.mark.parametrize(
    ("got", "expected", "tolerance", "same"),
    [
        ("1 2\n3", "1  2 \r\n\n3\n\n", 0.0, True),
        ("1 2 3", "1 2\n3", 0.0, False),
        ("1\n2", "1", 0.0, False),
        ("", "1", 0.0, False),
        ("", "\n", 0.0, True),
        ("0.333333", "0.3333334", 1e-5, True),
        ("0.333333", "0.3333334", 0.0, False),
        ("1000001", "1000000", 1e-3, False),
        ("1.0", "1", 1e-3, False),
        ("1", "1.0", 1e-6, True),
        ("nan", "1.0", 1e-6, False),
        ("inf", "1e400", 1e-6, True),
        ("one", "1.0", 1e-6, False),
        ("yes", "Yes", 1e-6, False),
        ("1e999999999999", "2.5", 1e-6, False),
        ("9" * 5000, "1.5", 1e-6, False),
    ],
)
def test_printed_text_agrees_by_lines_and_words(got: str, expected: str, tolerance: float, same: bool) -> None:
    assert same_output(got, expected, tolerance) is same


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        (3, 3, True),
        (3, 4, False),
        (True, 1, False),
        (1, True, False),
        (None, None, True),
        (None, 0, False),
        ((1, [2, (3,)]), [1, [2, [3]]], True),
        ([1, 2], [1, 2, 3], False),
        ({1: "a"}, {"1": "a"}, True),
        ({"a": 1}, {"a": 2}, False),
        (0.1 + 0.2, 0.3, True),
        (0.30001, 0.3, False),
        (2.0, 2, True),
        (10**400, 1.0, False),
        (10**400, 10**400 + 1, False),
        (5, [5], True),
        ([5], 5, False),
        ("a", ["a"], True),
        ("3", 3, False),
        ({1, 2}, [1, 2], False),
        (nested(5000), nested(5000), False),  # given up, not crashed
    ],
)
def test_returned_values_agree_by_type_and_value(got: Any, expected: Any, same: bool) -> None:
    assert same_value(got, expected, 1e-6) is same


# Right and wrong programs in each form.


def test_printed_form() -> None:
    right = "a, b = map(int, input().split())\nprint(a + b)"
    assert score(right, PRINTED) == 1.0
    assert score("print(3)", PRINTED) == 0.0
    assert score("print(3)", PRINTED, SHARE) == 0.5
    assert score(right + "\nraise SystemExit(1)", PRINTED) == 0.0
    assert (
        score("import sys\nif __name__ == '__main__':\n    print(sum(map(int, sys.stdin.read().split())))", PRINTED)
        == 1.0
    )


def test_forms_work_at_every_level(at: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "level", lambda: at)
    assert score("print(sum(map(int, input().split())))", PRINTED) == 1.0
    assert score("def add(a, b): return a + b if a == 1 else 0", CALLED, SHARE) == 0.5
    assert score("def square(x): return x * x if x == 2 else 0", UNIT, SHARE) == 0.5


def test_long_expected_output_may_exceed_the_usual_limit() -> None:
    columns = {"inputs": ["200000"], "outputs": ["\n".join(map(str, range(200_000)))]}
    assert score("for i in range(int(input())): print(i)", columns) == 1.0


def test_call_form() -> None:
    assert score("def add(a, b): return a + b", CALLED) == 1.0
    assert score("class Solution:\n    def add(self, a: int, b: Optional[int]) -> int: return a + b", CALLED) == 1.0
    assert score("def add(a, b): return 3", CALLED) == 0.0
    assert score("def add(a, b): return 3", CALLED, SHARE) == 0.5
    assert score("def other(a, b): return a + b", CALLED) == 0.0
    assert score("def add(a, b): return a +", CALLED) == 0.0
    assert (
        score(
            "import os\ndef add(a, b):\n    print('noise')\n    if a == 1: os._exit(0)\n    return a + b", CALLED, SHARE
        )
        == 0.5
    )
    assert (
        score("def add(a, b):\n    while a == 1: pass\n    return a + b", CALLED, CodeVerifier(test_s=0.7, share=True))
        == 0.5
    )


def test_every_call_gets_an_object_of_its_own_and_named_arguments() -> None:
    program = "class Solution:\n    seen = 0\n    def add(self, a, b=0):\n        self.seen += 1\n"
    program += "        return [a, b, self.seen]"
    columns = {"inputs": [{"a": 1}, {"a": 2, "b": 3}], "outputs": [[1, 0, 1], [2, 3, 1]], "fn_name": "add"}
    assert score(program, columns) == 1.0


def test_numpy_results_count_as_plain_data() -> None:
    program = "import numpy as np\ndef add(a, b): return {'x': np.int64(a) + b, 'y': np.array([a, b])}"
    columns = {"inputs": [[1, 2]], "outputs": [{"x": 3, "y": [1, 2]}], "fn_name": "add"}
    assert score(program, columns) == 1.0
    tests = "import numpy as np\nassert add(1, 2)['x'] == 3\nassert np.allclose(add(1, 2)['y'], [1, 2])\n"
    tests += "assert add(1, 2)['y'].sum() == 3"
    assert score(program, {"tests": tests}) == 1.0


def test_unit_form() -> None:
    assert score("def square(x): return x * x", UNIT) == 1.0
    assert score("def square(x): return 4", UNIT) == 0.0
    assert score("def square(x): return 4", UNIT, SHARE) == 0.5
    assert score("import os\ndef square(x):\n    if x == 2: os._exit(0)\n    return x * x", UNIT, SHARE) == 0.5
    assert score("def square(x): return x *", UNIT) == 0.0
    assert score("def other(x): return x * x", UNIT) == 0.0
    assert (
        score("def square(x):\n    while x == 2: pass\n    return x * x", UNIT, CodeVerifier(test_s=0.7, share=True))
        == 0.5
    )


HUMANEVAL = """
METADATA = {"author": "x"}
def check(candidate):
    assert candidate([1.0, 2.0]) == 1.5
    assert abs(candidate([1.0]) - 1.0) < 1e-6
"""
PYTEST = """
import pytest
from solution import Stack, EmptyError
@pytest.fixture
def unused(): return 1
def test_last_in_first_out():
    stack = Stack()
    stack.push((1, "a")); stack.push(2)
    assert len(stack) == 2 and 2 in stack and stack and isinstance(stack, Stack)
    assert list(stack) == [(1, "a"), 2] and stack.items[0] == (1, "a") and stack[1] == 2
    assert stack.pop() == 2
def test_empty():
    with pytest.raises(EmptyError, match="nothing"):
        Stack().pop()
    with pytest.raises(IndexError):
        Stack()[0]
@pytest.mark.parametrize("a,b", [(1, 1), (2, 3)])
def test_parameters(a, b):
    stack = Stack()
    stack.push(a)
    assert stack.pop() == b
"""
STACK = """
class EmptyError(Exception): pass
class Stack:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
    def __len__(self): return len(self.items)
    def __contains__(self, x): return x in self.items
    def __iter__(self): return iter(self.items)
    def __getitem__(self, i): return self.items[i]
    def pop(self):
        if not self.items: raise EmptyError("nothing there")
        return self.items.pop()
"""
UNITTEST = """
import unittest
class TestTask(unittest.TestCase):
    @classmethod
    def setUpClass(cls): cls.one = 1
    def setUp(self): self.two = 2
    def test_a(self): self.assertEqual(task(self.one), self.two)
    def test_b(self): self.assertEqual(task(5), 7)
    def test_c(self):
        with self.assertRaises(TypeError): task("x")
"""


@pytest.mark.parametrize(
    ("program", "columns", "share"),
    [
        ("def mean(x): return sum(x) / len(x)", {"test": HUMANEVAL, "entry_point": "mean"}, 1.0),
        ("def mean(x): return 1.5", {"test": HUMANEVAL, "entry_point": "mean"}, 0.0),
        (STACK, {"tests": PYTEST}, 2 / 3),
        ("def task(x): return x + 1", {"tests": UNITTEST}, 2 / 3),
        ("def sum(a, b): return a + b", {"test_list": ["assert sum(10, 15) == 25"]}, 1.0),
        ("def order(a): a.sort()", {"tests": "a = [3, 1]\norder(a)\nassert a == [1, 3]"}, 1.0),
        ("def grow(d, s): d['x'] = 1; s.add(2)",
         {"tests": "d, s = {}, set()\ngrow(d, s)\nassert (d, s) == ({'x': 1}, {2})"}, 1.0),
        ("def m(f, xs): return [f(x) for x in xs]", {"tests": "assert m(lambda x: x + 1, [1, 2]) == [2, 3]"}, 1.0),
        ("def g(n):\n    for i in range(n): yield i", {"tests": "assert list(g(3)) == [0, 1, 2]\nassert next(g(1)) == 0"}, 1.0),
        ("def depth(n): return 0 if n is None else 1 + depth(n.next)",
         {"tests": "class Node:\n    def __init__(self, next): self.next = next\nassert depth(Node(Node(None))) == 2"}, 1.0),
        ("def f(x): return {'a': (1, {2}), 'b': b'x', 'c': 1j, 'd': 2**100, 'e': None, 'f': range(3)}",
         {"tests": "assert f(0) == {'a': (1, {2}), 'b': b'x', 'c': 1j, 'd': 2**100, 'e': None, 'f': range(3)}"}, 1.0),
        ("from collections import Counter\nfrom fractions import Fraction\nimport math\n"
         "def f(x): return Counter(x), Fraction(1, 3)",
         {"tests": "assert f('aab') == (Counter({'a': 2, 'b': 1}), Fraction(1, 3))\n"
                   "assert math.pi > 3 and re.match('a', 'a')"}, 1.0),
        ("class V:\n    def __init__(self, x): self.x = x\n    def __add__(self, o): return V(self.x + o.x)\n"
         "    def __mul__(self, k): return V(self.x * k)\n    def __eq__(self, o): return isinstance(o, V) and self.x == o.x",
         {"tests": "assert V(1) + V(2) == V(3)\nassert V(2) * 3 == V(6)\nassert V(1) != V(2)\nassert V(1) == 1"}, 0.75),
        ("def f(x):\n    if x < 0: raise ValueError('negative')\n    return x",
         {"tests": "try:\n    f(-1)\n    ok = False\nexcept ValueError as e:\n    ok = str(e) == 'negative'\nassert ok"}, 1.0),
        ("def f(): return 1", {"tests": "x = f()\nif x != 1:\n    raise SystemExit(1)"}, 1.0),
        ("def f(): return 2", {"tests": "x = f()\nif x != 1:\n    raise SystemExit(1)"}, 0.0),
        ("def f(): return 1", {"tests": "assert f() == 1\nassert ("}, 0.0),
        ("def f(): return 1", {"tests": "def check(c):\n    assert c() == 1"}, None),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_unit_tests_of_many_kinds(program: str, columns: dict[str, Any], share: float | None) -> None:
    assert score(program, columns, SHARE) == share


# Tricks. A program that computes nothing must not pass.

BLIND = {
    "inputs": ["5\n"],
    "outputs": ["8675309\n"],
}
BLIND_CALL = {"inputs": [[5]], "outputs": [8675309], "fn_name": "f"}
BLIND_UNIT = {"tests": "assert f(5) == 8675309"}

EVERYWHERE = {
    "leaves at once": "raise SystemExit(0)",
    "leaves hard": "import os; os._exit(0)",
    "is empty": "",
    "overrides builtins": """
import builtins
builtins.print = builtins.len = builtins.isinstance = builtins.abs = builtins.all = lambda *a, **k: True
builtins.AssertionError = builtins.Exception = type('E', (BaseException,), {})
def f(x): return 0
""",
    "patches json": """
import json, json.encoder, json.decoder
json.dumps = lambda *a, **k: '["ok", true]'
json.loads = lambda *a, **k: ["ok", True]
def f(x): return 0
""",
    "patches comparison": """
import operator, unittest, sys
operator.eq = lambda a, b: True
unittest.TestCase.assertEqual = lambda *a: None
sys.excepthook = lambda *a: None
def f(x): return 0
""",
    "swallows errors": """
import atexit, os, sys, threading
atexit.register(lambda: os._exit(0))
sys.settrace(lambda *a: None)
threading.excepthook = lambda *a: None
def f(x): raise SystemExit(0)
""",
    "writes markers everywhere": """
import os
for text in ('PASS', 'ok', '["ok",true]', '["ok",1]', '0 pass', 'x tests 1', 'x 0 pass', 'All tests passed', 'status 0'):
    for number in range(40):
        try: os.write(number, (text + chr(10)).encode())
        except OSError: pass
def f(x): return 0
os._exit(0)
""",
    "forges frames": """
import os, json
def frame(m):
    b = json.dumps(m).encode()
    return len(b).to_bytes(8, 'big') + b
for number in range(3, 40):
    for m in (["names", [["f", "import", "operator", "not_"]]], ["ok", True, []], ["ok", {"mine": 1}, []]):
        try: os.write(number, frame(m))
        except OSError: pass
def f(x): return 0
""",
    "looks for what is expected": """
import gc, glob, hashlib, os, re, sys
def search():
    for name in [*glob.glob('/proc/[0-9]*/*'), *glob.glob('*'), *glob.glob('/tmp/*')]:
        try: yield open(name, 'rb').read().decode('latin-1')
        except OSError: pass
    frame = sys._getframe()
    while frame:
        yield repr(frame.f_locals) + repr(frame.f_globals)
        frame = frame.f_back
    for thing in gc.get_objects():
        if isinstance(thing, (str, bytes, list, dict, tuple)): yield repr(thing)[:100_000]
def f(x):
    for text in search():
        for found in re.findall('[0-9]{7}', text):
            if hashlib.md5(found.encode()).hexdigest() == '6cc0d36686e6a433aa76f96773852d35': return int(found)
    return 0
if __name__ == '__main__': print(f(0))
""",
}
VALUES = {
    "equals everything": "class E:\n    def __eq__(self, o): return True\n    __hash__ = None\ndef f(x): return E()",
    "int that equals everything":
        "class E(int):\n    def __eq__(self, o): return True\n    __hash__ = int.__hash__\ndef f(x): return E(1)",
    "str that equals everything":
        "class E(str):\n    def __eq__(self, o): return True\n    __hash__ = None\ndef f(x): return E('x')",
    "list that equals everything": "class E(list):\n    def __eq__(self, o): return True\ndef f(x): return E()",
    "claims a class": "class E:\n    __class__ = int\n    def __eq__(self, o): return True\ndef f(x): return E()",
    "is replaced by a mock": "from unittest import mock\ndef f(x): return mock.ANY",
    "is a mock": "from unittest import mock\nf = mock.MagicMock()",
    "raises a skip": "import unittest\ndef f(x): raise unittest.SkipTest('no')",
    "raises a stop": "def f(x): raise StopIteration",
    "raises an assertion": "def f(x): raise AssertionError",
    "interrupts": "def f(x): raise KeyboardInterrupt",
    "returns nan": "def f(x): return float('nan')",
    "returns too much": "def f(x): return 'x' * 10**7",
    "returns too deep": "def f(x):\n    a = []\n    for _ in range(100_000): a = [a]\n    return a",
    "returns itself": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "returns a generator without end": "import itertools\ndef f(x): return itertools.count()",
    "never returns": "def f(x):\n    while True: pass",
    "eats memory": "def f(x):\n    a = []\n    while True: a.append(bytearray(10**7))",
    "forks": "import os\ndef f(x):\n    while True: os.fork()",
    "overflows the stack": "def f(x): return f(x)",
    "crashes": "import ctypes\ndef f(x): return ctypes.string_at(0)",
}  # fmt: skip


@pytest.mark.parametrize("columns", [BLIND, BLIND_CALL, BLIND_UNIT], ids=["printed", "call", "unit"])
@pytest.mark.parametrize("trick", EVERYWHERE)
def test_tricks_of_any_form_gain_nothing(trick: str, columns: dict[str, Any]) -> None:
    assert score(EVERYWHERE[trick], columns) == 0.0


@pytest.mark.parametrize(
    ("trick", "columns"),
    [*((trick, BLIND_UNIT) for trick in VALUES), *((trick, BLIND_CALL) for trick in list(VALUES)[::6])],
)
def test_tricks_with_values_gain_nothing(trick: str, columns: dict[str, Any]) -> None:
    verifier = CodeVerifier(wall_s=8, test_s=1.2, limits=LIMITS)
    start = time.monotonic()
    assert score(VALUES[trick], columns, verifier) == 0.0
    assert time.monotonic() - start < 6


@pytest.mark.parametrize("trick", ["writes markers everywhere", "forges frames", "looks for what is expected"])
def test_tricks_gain_nothing_at_the_weakest_level(trick: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weakest = sandbox.working()[-1]
    monkeypatch.setattr(sandbox, "level", lambda: weakest)
    assert score(EVERYWHERE[trick], BLIND_UNIT) == 0.0


def test_search_for_what_is_expected_would_find_it() -> None:
    """The trick itself works: outside of a sandbox, where the answer lies in memory."""
    namespace: dict[str, Any] = {"__name__": "solution", "answer": [8675309]}
    exec(EVERYWHERE["looks for what is expected"].replace("glob.glob", "list"), namespace)
    assert namespace["f"](0) == 8675309


OBJECT = "class E:\n    def {name}(self, *a): return {result}\ndef f(x): return E()\ndef {extra}(*a): return {result}"


@pytest.mark.parametrize(
    ("test", "name", "result", "extra"),
    [
        ("assert abs(f(5) - 1.25) < 1e-6", "__sub__", "0", "g"),
        ("assert abs(1.25 - f(5)) < 1e-6", "__rsub__", "0", "g"),
        ("assert abs(f(5) - 1.25) < 1e-6", "__sub__", "E()", "abs"),
        ("assert round(f(5), 2) == 1.25", "__round__", "1.25", "round"),
        ("import math\nassert math.isclose(f(5), 1.25)", "__float__", "1.25", "isclose"),
        ("assert math.isclose(f(5), 1.25)", "isclose", "True", "g\nmath = E()\ndef h"),
        ("assert np.allclose([f(5)], [1.25])", "allclose", "True", "g\nnp = E()\ndef h"),
        ("from math import isclose\nassert isclose(f(5), 1.25)", "__float__", "1.25", "isclose"),
        ("assert f(5) > 1.25", "__gt__", "True", "g"),
        ("assert 1.25 < f(5) < 1.75", "__gt__", "True", "g"),
        ("assert f(5) <= 1.25", "__le__", "True", "g"),
        ("assert not f(5) != 1.25", "__ne__", "False", "g"),
        ("assert set([f(5)]) == set([1.25])", "__hash__", "hash(1.25)", "set"),
        ("assert 1.25 in [f(5)]", "__eq__", "True", "any"),
        ("assert all([f(5) == 1.25, f(5) == 1.25])", "__eq__", "True", "all"),
    ],
)
def test_made_up_objects_pass_no_numeric_test(test: str, name: str, result: str, extra: str) -> None:
    program = OBJECT.format(name=name, result=result, extra=extra)
    assert score(program, {"tests": test}) == 0.0
    honest = 1.5 if "f(5) > 1.25" in test or "<" in test.partition("f(5)")[0] else 1.25
    assert score(f"def f(x): return {honest}", {"tests": test}) == 1.0


def test_program_gets_nothing_of_the_tests_through_a_function_it_is_given() -> None:
    program = """
def f(call):
    for name in ("__globals__", "__code__", "__closure__", "__self__", "__class__", "__dict__", "gi_frame"):
        try:
            getattr(call, name)["expected"]
            return 8675309
        except (AttributeError, PermissionError, TypeError): pass
    try: call.__setattr__("x", 1)
    except PermissionError: return call(1)
"""
    tests = "expected = 8675309\nassert f(lambda x: x + {add}) == {want}"
    assert score(program, {"tests": tests.format(add=1, want=2)}) == 1.0  # an ordinary call works
    assert score(program, {"tests": tests.format(add=1, want="expected")}) == 0.0


def test_verdict_without_the_nonce_of_the_run_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert score("def square(x): return x * x", UNIT) == 1.0
    start = code._Unit.start
    monkeypatch.setattr(code._Unit, "start", lambda self, first, nonce: start(self, first, "0" * 32))
    assert score("def square(x): return x * x", UNIT) == 0.0


def test_tests_that_need_a_missing_package_are_unscorable_with_a_warning() -> None:
    columns = {"tests": "import no_such_package\nassert f(1) == 1"}
    with pytest.warns(UserWarning, match="not installed"):
        assert score("def f(x): return 1", columns) is None
    # What the program lacks is its own fault.
    assert score("import no_such_package\ndef f(x): return 1", {"tests": "assert f(1) == 1"}) == 0.0
    assert score("def f(x): return 1", {"tests": "from solution import g\nassert g(1) == 1"}) == 0.0


def test_one_failure_ends_it_unless_the_share_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    real = sandbox.run
    monkeypatch.setattr(code.sandbox, "run", lambda *a, **k: runs.append(1) or real(*a, **k))
    columns = {"inputs": ["1", "2", "3"], "outputs": ["0", "2", "3"]}
    assert score("print(input())", columns) == 0.0
    assert len(runs) == 1
    assert score("print(input())", columns, SHARE) == 2 / 3
    assert len(runs) == 4


@pytest.mark.parametrize(
    ("columns", "program"),
    [
        ({"inputs": ["1"] * 50, "outputs": ["1"] * 50}, "import time; time.sleep(60)"),
        ({"inputs": [[1]] * 50, "outputs": [1] * 50, "fn_name": "f"}, "import time\ndef f(x): time.sleep(60)"),
        ({"test_list": ["assert f(1) == 1"] * 50}, "import time\ndef f(x): time.sleep(60)"),
    ],
    ids=["printed", "call", "unit"],
)
def test_all_tests_together_have_one_limit(columns: dict[str, Any], program: str) -> None:
    start = time.monotonic()
    assert score(program, columns, CodeVerifier(share=True, wall_s=0.7, test_s=0.3)) == 0.0
    assert time.monotonic() - start < 9  # 50 limits of one test would be 15 s


@pytest.mark.parametrize(
    "program", ["\0" * 100, "\udc00\ud800", base64.b64encode(bytes(range(256)) * 99).decode(), "(" * 50_000]
)
@pytest.mark.parametrize("columns", [BLIND_CALL, BLIND_UNIT], ids=["call", "unit"])
def test_garbage_scores_nothing(program: str, columns: dict[str, Any]) -> None:
    assert score(program, columns) == 0.0


def test_response_without_a_program_scores_zero_and_a_broken_sandbox_is_unscorable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert STRICT.score("I give up.", PRINTED) == 0.0

    def broken() -> Level:
        raise SandboxError("no level")

    monkeypatch.setattr(sandbox, "level", broken)
    before = len(os.listdir("/dev/fd"))
    for columns in (PRINTED, CALLED, UNIT):
        with pytest.warns(UserWarning, match="no level"):
            assert score("print(1)", columns) is None
    assert len(os.listdir("/dev/fd")) == before


def test_scores_of_several_threads_do_not_get_mixed_up() -> None:
    columns = [{"inputs": [str(i)], "outputs": [str(i)]} for i in range(3)]
    columns += [{"test_list": [f"assert f({i}) == {i}"]} for i in range(3)]
    program = "def f(x): return x\nif __name__ == '__main__': print(input())"
    before = len(os.listdir("/dev/fd"))
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda row: score(program, row), columns * 2))
    assert found == [1.0] * 12
    assert len(os.listdir("/dev/fd")) == before


def test_verifier_names_itself_and_its_version() -> None:
    assert (STRICT.name, STRICT.version) == ("code", "1")


def test_many_are_scored_at_a_time_in_their_order_and_as_one_alone() -> None:
    row = {"inputs": ["1", "2"], "outputs": ["1", "2"]}
    echo, one = "```python\nprint(input())\n```", "```python\nprint(1)\n```"
    texts = [echo, one, "no program", echo]
    assert STRICT.score_many(texts, [row, row, row, {}]) == [1.0, 0.0, 0.0, None]
    assert STRICT.score_many([], []) == []


def test_one_that_the_verifier_fails_on_costs_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    real = CodeVerifier.verdict
    monkeypatch.setattr(
        CodeVerifier, "verdict", lambda self, text, row: 1 / 0 if text == "bad" else real(self, text, row)
    )
    row = {"inputs": ["1"], "outputs": ["1"]}
    found = STRICT.judge(["bad", "no program"], [row, row])
    assert found == [Verdict(None, "raised ZeroDivisionError: division by zero"), Verdict(0.0)]
    assert STRICT.judge(["bad"], [row])[0].score is None


def test_a_program_that_was_judged_before_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    judged = code.cached(wall_s=8, test_s=4, limits=LIMITS)
    row = {"inputs": ["1"], "outputs": ["1"], "id": 7}
    echo = "```python\nprint(input())\n```"
    assert judged.score_many([echo, echo], [row, row]) == [1.0, 1.0]
    monkeypatch.setattr(CodeVerifier, "verdict", lambda *a: 1 / 0)
    assert judged.score(echo, row) == 1.0
    assert judged.score(echo, {**row, "inputs": ["2"]}) is None
    assert judged.complaint({"prompt": "x"}) == STRICT.complaint({"prompt": "x"}) is not None


def test_an_interruption_of_many_does_not_wait_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def slow(self: CodeVerifier, text: str, columns: Any) -> Verdict:
        begun.append(text)
        time.sleep(0.3)
        return Verdict(1.0)

    monkeypatch.setattr(CodeVerifier, "verdict", slow)
    start = time.monotonic()
    with pytest.raises(TooSlow):
        within(0.1, lambda: STRICT.score_many(["a"] * 200, [{}] * 200))
    assert time.monotonic() - start < 2
    assert len(begun) < 200


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"tests": ["assert f(1) == 1"]}, None),
        ({"prompt": "x"}, "no column with tests: needs inputs and outputs"),
        ({"inputs": ["1", "2"], "outputs": ["1"]}, "2 inputs for 1 outputs"),
        ({"test_cases": 3}, "tests are neither inputs and outputs nor Python source"),
    ],
)
def test_complaint_says_what_is_wrong_with_a_row(row: dict[str, Any], said: str | None) -> None:
    found = STRICT.complaint(row)
    assert found == said if said is None else found is not None and found.startswith(said)


@pytest.mark.parametrize("wrong", [{"wall_s": 0}, {"test_s": float("nan")}, {"tolerance": -1e-6}])
def test_impossible_options_are_refused_by_name(wrong: dict[str, float]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=f"{name} must be .* got {value}"):
        CodeVerifier(**wrong)  # type: ignore[arg-type]


# How values cross.


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -(2**63), 2**64, [10**5000], 0.1, float("inf"), "ä\ud800", b"\0x", bytearray(b"y"), 1 + 2j, (1, (2,)),
     [1, [2]], {1: "a", (1, 2): {3}}, {1, 2}, frozenset({1}), range(1, 9, 2)],
)  # fmt: skip
def test_plain_data_crosses_unchanged(value: Any) -> None:
    found = decode(json.loads(dumps(encode(value))))
    assert found == value
    assert type(found) is type(value)


def test_objects_and_bottomless_data_do_not_cross_by_value() -> None:
    with pytest.raises(NotPlainError, match="object"):
        encode(object())
    with pytest.raises(NotPlainError, match="deeply"):
        encode(nested(300))
    bottomless: list[Any] = []
    bottomless.append(bottomless)
    with pytest.raises(NotPlainError, match="deeply"):
        encode(bottomless)


@pytest.mark.parametrize(
    "data",
    [
        {"t": 5},
        {"i": "x"},
        {"a": 1, "b": 2},
        {},
        {"d": [[1]]},
        {"mine": 1},
        {"n": ["0x1", "0x0"]},
        {"d": [[[], 1]]},
        {"": 1},
    ],
)
def test_malformed_data_raises_what_the_caller_catches(data: Any) -> None:
    with pytest.raises((ValueError, TypeError, ArithmeticError, NotPlainError)):
        decode(data)
    run = code._Called(STRICT, "", read_problem(CALLED))
    assert run.right(dumps(["ok", data]), 3) is False


@pytest.mark.parametrize(
    "sent",
    [b"", b"\0" * 7, b"\xff" * 8, (5).to_bytes(8, "big") + b"[1,2", (3).to_bytes(8, "big") + b"\xff{x",
     (200_000).to_bytes(8, "big") + b"[" * 200_000],
)  # fmt: skip
def test_peer_that_talks_nonsense_is_lost(sent: bytes) -> None:
    reader, writer = os.pipe()

    def send() -> None:
        rest = sent
        while rest:
            rest = rest[os.write(writer, rest) :]
        os.close(writer)

    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(LostError):
        Peer(reader, -1, trusting=False).receive()
    thread.join()
    os.close(reader)
