"""The function form, inside the sandbox: call a function of the program with each input and report what it returns.

There is nothing here worth stealing: no expected output is in the sandbox, and a forged report has to contain the right
answer as an honest one has.
"""

from __future__ import annotations

import os
from typing import Any

from vantage.verifiers.inside.wire import dumps, encode, refuse

PRELUDE = """
import bisect, collections, copy, functools, heapq, itertools, math, operator, random, re, string, sys
from math import *
del pow
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from typing import *
"""
"""Judges of this form supply these names; programs written for them rely on it."""


def main(data: dict[str, Any]) -> None:
    """Report on every call, one line of JSON each, on the descriptor `reply`: ["ok", value], ["bad", why], or
    ["dead", why] if the program can not be called at all."""
    reply = data["reply"]
    try:
        function = _load(data["function"])
    except BaseException as error:
        _report(reply, ["dead", f"the program does not load: {type(error).__name__}: {error}"[:500]])
        os._exit(1)
    for args, kwargs in data["calls"]:
        try:
            answer = ["ok", encode(function()(*args, **kwargs), _array)]
            _report(reply, answer)
        except BaseException as error:
            _report(reply, ["bad", f"{type(error).__name__}: {error}"[:500]])
    os._exit(0)  # whatever the program has left running


def _load(name: str) -> Any:
    """A function that gives what to call: a method of a new `Solution` each time, or a function of the program."""
    namespace: dict[str, Any] = {"__name__": "solution"}
    exec(PRELUDE, namespace)
    with open("program.py", "rb") as file:
        exec(compile(file.read(), "program.py", "exec", dont_inherit=True), namespace)
    solution = namespace.get("Solution")
    if isinstance(solution, type) and hasattr(solution, name):
        return lambda: getattr(solution(), name)
    if name not in namespace:
        raise NameError(f"no function {name}")
    return lambda: namespace[name]


def _array(value: Any) -> Any:
    """NumPy's arrays are sent as lists."""
    return encode(value.tolist()) if type(value).__module__ == "numpy" and hasattr(value, "tolist") else refuse(value)


def _report(descriptor: int, answer: Any) -> None:
    line = memoryview(dumps(answer) + b"\n")
    while line:
        line = line[os.write(descriptor, line) :]
