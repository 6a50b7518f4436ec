"""Does a program do what its tests ask for? The verifier `code`.

The program is taken from the response (`programs`), the tests from the row (`problems`); the program runs in the sandbox
(`sandbox`). **No expected output enters the sandbox of the program**: what it prints or returns comes out as text or plain
data and is compared elsewhere, for printed text and function calls in this process (`answers`), for unit tests in a second
sandbox, which runs the tests, calls the program across two pipes (`inside.peer`) and attests each verdict with a nonce.
So leaving early, changing builtins, objects that equal everything, forged messages and looking around gain nothing.

What remains possible, on purpose or by chance:

- a program that has the right answers written into it passes; tests with few or easily guessed outputs (yes or no) are
  passed by guessing;
- inputs are known to the program, and in the call and unit form so is which test it is in;
- unit tests see values, not the program's own objects: identity (`is`), captured output, subclassing a class of the
  program and asynchronous functions can not be tested; such tests fail. What a program's own object says of itself, such
  as a method that returns True, has to be believed;
- a program may spend the time and memory that it is given;
- what `sandbox.level().unprotected` says of this machine.
"""

from __future__ import annotations

import json
import os
import secrets
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from vantage.errors import UserError
from vantage.plugins import one_line
from vantage.verifiers import sandbox
from vantage.verifiers.answers import same_output, same_value
from vantage.verifiers.base import BatchVerifier, Verdict
from vantage.verifiers.cache import Cached
from vantage.verifiers.inside.wire import NotPlainError, decode
from vantage.verifiers.problems import Problem, read_problem
from vantage.verifiers.programs import find_program
from vantage.verifiers.sandbox import Limits, SandboxError
from vantage.verifiers.supervise import Process, supervise


class UnableError(Exception):
    """The tests themselves can not be run here."""


@dataclass(frozen=True)
class CodeVerifier(BatchVerifier):
    """Runs a response's program against the tests of its row: 1 if all pass, else 0; with `share` the passed share."""

    name = "code"
    version = "1"

    share: bool = False
    """Score the share of passed tests. Otherwise the first failure ends it."""
    column: str | None = None
    """Column with the tests; by default the first known one, see `vantage.verifiers.problems`."""
    whole_text: bool = False
    """A response without a fenced block is itself the program."""
    tolerance: float = 1e-6
    """By how much a decimal fraction may differ, absolutely or relatively; integers may not."""
    wall_s: float = 30.0
    """Seconds on the clock for all tests of a response."""
    test_s: float = 10.0
    """Seconds on the clock for one test."""
    limits: Limits = field(default_factory=Limits)
    """What the program may use; its `wall_s` is not used here."""

    def __post_init__(self) -> None:
        for option in ("wall_s", "test_s"):
            if not getattr(self, option) > 0:
                raise UserError(f"code verifier: {option} must be above 0 seconds, got {getattr(self, option)}")
        if not self.tolerance >= 0:
            raise UserError(f"code verifier: tolerance must be 0 or more, got {self.tolerance}")

    def judge(self, texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """A verdict a response, as many at a time as there are processor cores for this process."""
        if len(texts) == 1:
            return [self._verdict_or_note(texts[0], rows[0])]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        pool = ThreadPoolExecutor(cores)
        try:
            return list(pool.map(self._verdict_or_note, texts, rows))
        finally:  # whoever interrupts this does not wait for programs that have not begun
            pool.shutdown(wait=False, cancel_futures=True)

    def _verdict_or_note(self, text: str, columns: Mapping[str, Any]) -> Verdict:
        try:
            return self.verdict(text, columns)
        except Exception as error:  # the others are judged all the same
            return Verdict(None, f"raised {one_line(error)}")

    def verdict(self, text: str, columns: Mapping[str, Any]) -> Verdict:
        """The verdict on one response.

        It has no score where the row has no tests, and, with a note and a warning, where these need a package that is not
        here or the sandbox does not work.
        """
        try:
            problem = read_problem(columns, self.column)
        except (ValueError, TypeError, RecursionError):
            return Verdict(None)
        program = find_program(text, self.whole_text)
        if program is None:
            return Verdict(0.0)
        try:
            passed, tests = self.run_tests(program, problem)
        except (UnableError, SandboxError) as error:
            warnings.warn(f"code verifier: {error}", stacklevel=2)
            return Verdict(None, str(error))
        if not tests:
            return Verdict(None)
        return Verdict(passed / tests if self.share else float(passed == tests))

    def complaint(self, columns: Mapping[str, Any]) -> str | None:
        """What is wrong with a row's tests, in one line; None if nothing."""
        try:
            read_problem(columns, self.column)
        except RecursionError:
            return "the tests are nested too deeply"
        except (ValueError, TypeError) as error:
            return " ".join(str(error).split())
        return None

    def run_tests(self, program: str, problem: Problem) -> tuple[int, int]:
        """Passed tests and tests. Raises `SandboxError`, `UnableError`."""
        run = {"stdin": _Printed, "call": _Called, "unit": _Unit}[problem.kind](self, program, problem)
        deadline = time.monotonic() + self.wall_s
        first = 0
        # A test that ends the program, or takes too long, is failed; those after it get a fresh program.
        while first < run.tests and (left := deadline - time.monotonic()) > 0:
            first = run.go(first, left)
            if run.failed and not self.share:
                break
        return run.passed, run.tests


def cached(**options: Any) -> Cached:
    """The verifier with these options behind a cache: a program that was judged before on the same row is not run again."""
    return Cached(CodeVerifier(**options))


class _Run:
    """Tests of one program under way. `go` starts at a test and returns the number of the first one not decided."""

    def __init__(self, verifier: CodeVerifier, program: str, problem: Problem) -> None:
        self.verifier, self.program, self.problem = verifier, program, problem
        self.passed, self.failed = 0, 0
        self.tests = len(problem.inputs)

    def go(self, first: int, seconds: float) -> int:
        raise NotImplementedError

    def decide(self, passed: bool) -> None:
        self.passed += passed
        self.failed += not passed

    def files(self) -> dict[str, bytes]:
        return {"program.py": sandbox.encoded(self.program)}

    def watch(self, process: Process, take: Callable[[bytes], bool]) -> Callable[[], bool]:
        """For `supervise`: hand every line of the pipe `reply` to `take`; stop when it says so or a test takes too long."""
        taken, since = 0, time.monotonic()

        def stop() -> bool:
            nonlocal taken, since
            data = process.data["reply"]
            while (end := data.find(b"\n", taken)) >= 0:
                line, taken, since = bytes(data[taken:end]), end + 1, time.monotonic()
                if take(line):
                    return True
            return time.monotonic() - since > self.verifier.test_s

        return stop


class _Printed(_Run):
    """Standard input and output: a fresh process for each test."""

    def go(self, first: int, seconds: float) -> int:
        expected = self.problem.outputs[first]
        given = self.verifier.limits
        limits = replace(
            given,
            wall_s=min(seconds, self.verifier.test_s),
            output_bytes=max(given.output_bytes, 4 * len(expected)),
        )
        found = sandbox.run(self.program, self.problem.inputs[first], limits)
        self.decide(found.ok and same_output(found.stdout, expected, self.verifier.tolerance))
        return first + 1


class _Called(_Run):
    """Function calls: all in one process, one reply each, compared here."""

    def go(self, first: int, seconds: float) -> int:
        calls = list(self.problem.inputs[first:])
        room = max(self.verifier.limits.output_bytes, 4 * sum(len(repr(x)) for x in self.problem.outputs))
        number = first

        def take(line: bytes) -> bool:
            nonlocal number
            if number >= self.tests:  # more replies than calls: the program's own
                return True
            verdict = self.right(line, self.problem.outputs[number])
            self.decide(verdict is True)
            number = number + 1 if verdict is not None else self.tests
            return number == self.tests or (self.failed > 0 and not self.verifier.share)

        reader, writer = os.pipe()
        try:
            process = sandbox.harness(
                ("wire", "calls"),
                {"calls": calls, "function": self.problem.function, "reply": writer},
                self.files(),
                self.verifier.limits,
                keep=(writer,),
                pipes={"reply": (reader, room)},
            )
        finally:
            os.close(writer)
        stop = self.watch(process, take)
        supervise([process], seconds, stop)
        stop()  # what came with the end
        if number == first and process.reason == "exit":
            sandbox.outcome(process)  # raises if it never ran
        if number < self.tests:
            self.decide(False)
        return number + 1

    def right(self, line: bytes, expected: Any) -> bool | None:
        """Whether a reply holds the expected value, None if there will be no other one.

        It comes from the program: anything may be in it.
        """
        try:
            kind, content = json.loads(line)
            if kind == "dead":
                return None
            return kind == "ok" and same_value(decode(content), expected, self.verifier.tolerance)
        except (ValueError, TypeError, RecursionError, ArithmeticError, NotPlainError):
            return False


class _Unit(_Run):
    """Unit tests: the tests in one sandbox, the program in another."""

    def __init__(self, verifier: CodeVerifier, program: str, problem: Problem) -> None:
        super().__init__(verifier, program, problem)
        self.tests, self.unable = 1, False  # one until they have been counted

    def go(self, first: int, seconds: float) -> int:
        nonce = secrets.token_hex(16)
        number = first

        def take(line: bytes) -> bool:
            nonlocal number
            said, *words = line.decode("ascii", "replace").split(" ")
            if said != nonce or len(words) != 2:
                return False
            if words[0] == "tests":
                self.tests = int(words[1])
                return self.tests == 0
            if words[1] == "unable":
                self.unable = True
                return True
            number = int(words[0]) + 1 if words[1] != "dead" else self.tests
            self.decide(words[1] == "pass")
            return number == self.tests or (self.failed > 0 and not self.verifier.share)

        judge, subject = self.start(first, nonce)
        stop = self.watch(judge, take)
        supervise([judge, subject], seconds, stop)
        stop()
        if self.unable:
            raise UnableError("the tests import a package that is not installed here")
        if number == first and self.tests:
            for process in (judge, subject):
                if process.reason == "exit" and b"ready" not in process.data["status"]:
                    sandbox.outcome(process)
            self.decide(False)  # it has been ended in this test
            number += 1
        return number

    def start(self, first: int, nonce: str) -> tuple[Process, Process]:
        """The tests' process and the program's, connected by two pipes; the verdicts come by a third."""
        limits = self.verifier.limits
        ask, serve, verdict = os.pipe(), os.pipe(), os.pipe()
        tests = {
            "nonce": nonce, "first": first, "all": self.verifier.share, "verdicts": verdict[1],
            "reader": serve[0], "writer": ask[1],
            "sources": list(self.problem.sources), "setup": self.problem.setup, "function": self.problem.function,
        }  # fmt: skip
        try:
            judge = sandbox.harness(
                ("kernel", "wire", "peer", "judge"), tests, {}, limits,
                keep=(serve[0], ask[1], verdict[1]), pipes={"reply": (verdict[0], 1 << 20)},
            )  # fmt: skip
            try:
                subject = sandbox.harness(
                    ("wire", "peer", "subject"), {"reader": ask[0], "writer": serve[1]}, self.files(), limits,
                    keep=(ask[0], serve[1]),
                )  # fmt: skip
            except BaseException:
                judge.close()
                raise
        finally:
            for descriptor in (*ask, *serve, verdict[1]):
                os.close(descriptor)
        return judge, subject
