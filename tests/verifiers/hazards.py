"""Verifiers that do what must not harm a run, for the workers to run."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Hazard:
    """Does what the response says; else scores its length times `factor`."""

    name = "hazard"
    version = "1"
    factor: float = 1.0
    ballast: int = 0

    def __post_init__(self) -> None:
        bytearray(self.ballast)

    def score(self, text: str, columns: Mapping[str, Any]) -> Any:
        command, _, argument = text.partition(" ")
        if command in ACTIONS:
            return ACTIONS[command](argument, columns)
        return len(text) * self.factor


def hang(argument: str, columns: Mapping[str, Any]) -> None:
    while True:
        pass


def sleep(argument: str, columns: Mapping[str, Any]) -> float:
    time.sleep(float(argument))
    return 1.0


def deaf(argument: str, columns: Mapping[str, Any]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            time.sleep(60)
        except BaseException:
            continue


def backtrack(argument: str, columns: Mapping[str, Any]) -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")  # one call into C that does not come back


def eat(argument: str, columns: Mapping[str, Any]) -> int:
    return len([bytearray(1 << 20) for _ in range(1 << 16)])


def crash(argument: str, columns: Mapping[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def crash_once(argument: str, columns: Mapping[str, Any]) -> float:
    if not os.path.exists(argument):
        open(argument, "w").close()
        os._exit(3)
    return 0.5


def leave(argument: str, columns: Mapping[str, Any]) -> None:
    sys.exit(0)


def deep(argument: str, columns: Mapping[str, Any]) -> None:
    deep(argument, columns)


def fail(argument: str, columns: Mapping[str, Any]) -> None:
    raise ValueError(argument)


def spawn(argument: str, columns: Mapping[str, Any]) -> None:
    """A child that notes that it lives, and a parent that hangs."""
    if os.fork() == 0:
        while True:
            with open(argument, "a") as file:
                file.write("x")
            time.sleep(0.05)
    hang(argument, columns)


def shout(argument: str, columns: Mapping[str, Any]) -> float:
    print("x" * 100_000)
    os.write(1, b"\0" * 100_000)
    return 1.0


def scribble(argument: str, columns: Mapping[str, Any]) -> float:
    """Garbage on every descriptor, the one to the parent among them."""
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, argument.encode() * 1000)
        except OSError:
            continue
    return 1.0


def forge(argument: str, columns: Mapping[str, Any]) -> None:
    """An answer of its own making on every descriptor, and no other one."""
    content = argument.encode("latin-1")
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, len(content).to_bytes(8, "big") + content)
        except OSError:
            continue
    hang(argument, columns)


ACTIONS = {
    "forge": forge,
    "hang": hang,
    "sleep": sleep,
    "deaf": deaf,
    "backtrack": backtrack,
    "eat": eat,
    "crash": crash,
    "crash_once": crash_once,
    "leave": leave,
    "deep": deep,
    "fail": fail,
    "spawn": spawn,
    "shout": shout,
    "scribble": scribble,
    "return": lambda argument, columns: eval(argument),
    "column": lambda argument, columns: columns[argument],
    "columns": lambda argument, columns: len(columns),
    "pid": lambda argument, columns: os.getpid(),
    "modules": lambda argument, columns: float(argument in sys.modules),
    "variable": lambda argument, columns: float(argument in os.environ),
}
