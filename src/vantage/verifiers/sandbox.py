"""How is a Python program run that nobody has read? `run`: locked up, limited, and ended in time.

    >>> run("print(input()[::-1])", "abc").stdout
    'cba\\n'

What a program finds: its own interpreter (with the installed packages), an empty environment, an empty scratch folder as
its working directory. What it does not find, as far as `level()` goes: network, other processes, files of ours, a place to
write that outlives it. Limits hold on processor time, wall-clock time, memory, processes, threads, file size, open files
and output. `level().unprotected` says in words what this machine leaves open; at the weakest level a warning says it once.

What no level protects from: faults of the kernel, measuring time, and use of the granted share of the machine.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import marshal
import os
import signal
import subprocess
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vantage.verifiers import levels
from vantage.verifiers.levels import Level
from vantage.verifiers.supervise import Process, Reason, remove, supervise

INSIDE = "vantage.verifiers.inside"
SCRATCH = "/tmp"
"""The scratch folder as a program sees it in a root of its own."""
BOOT = """
import marshal, os, sys, types
descriptor = int(sys.argv[1])
modules, entry, data = marshal.loads(os.pread(descriptor, os.fstat(descriptor).st_size, 0))
os.close(descriptor)
for name, code in modules:
    module = sys.modules[name] = types.ModuleType(name)
    if code is None:
        module.__path__ = []
    else:
        exec(code, module.__dict__)
sys.modules[entry].main(data)
"""
"""The first lines of every interpreter: take compiled modules and data from a descriptor, call `main(data)`."""
PROBE = """
import threading
open("scratch.txt", "w").write("x")
thread = threading.Thread(target=print, args=("works",))
thread.start()
thread.join()
"""


class SandboxError(Exception):
    """The sandbox itself did not work: this says nothing about the program."""


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    wall_s: float = 10.0
    """Seconds on the clock from the start of its interpreter to its end."""
    cpu_s: int = 10
    """Seconds of processor time of a process, with all its threads."""
    memory_bytes: int = 1 << 30
    """Address space of a process."""
    processes: int = 1
    """Processes including the first; 1 forbids to start any. Memory and processor time then are the program's in total."""
    file_bytes: int = 16 << 20
    """Size of a file."""
    scratch_bytes: int = 64 << 20
    """Size of all files together."""
    open_files: int = 64
    output_bytes: int = 1 << 20
    """Bytes of standard output, and again of standard error; more end the program."""


@dataclass(frozen=True)
class Outcome:
    """How a program has ended and what it has written."""

    stdout: str
    stderr: str
    """Both are cut at the limit; bytes that are not UTF-8 become U+FFFD."""
    returncode: int | None
    """Exit status, -N after signal N; None if it was ended from outside."""
    reason: Reason
    """`exit` if it ended by itself, else the limit that ended it: wall, cpu, output, disk; stopped: the caller did."""

    @property
    def ok(self) -> bool:
        """Whether it ended by itself, with status 0."""
        return self.reason == "exit" and self.returncode == 0


def run(
    program: str,
    stdin: str = "",
    limits: Limits = Limits(),
    files: Mapping[str, str | bytes] | None = None,
    *,
    at: Level | None = None,
) -> Outcome:
    """Run a Python program.

    Args:
        program: its source; anything may be in it.
        stdin: what it reads.
        limits: what it may use.
        files: plain names → contents, put into its working directory.
        at: the level to run at; by default the best one here.

    Raises SandboxError if the program could not be started: too little memory, or no level works.
    """
    named = {name: encoded(content) for name, content in (files or {}).items()}
    named["program.py"] = encoded(program)
    with _failing({}):
        process = start([sys.executable, "-I", "-X", "utf8", "program.py"], named, encoded(stdin), limits, at=at)
    supervise([process], limits.wall_s)
    return outcome(process)


def start(
    argv: Sequence[str],
    files: Mapping[str, bytes],
    stdin: bytes,
    limits: Limits,
    *,
    keep: Sequence[int] = (),
    pipes: Mapping[str, tuple[int, int]] | None = None,
    at: Level | None = None,
) -> Process:
    """Start a command in the sandbox, to be handed to `supervise`. Raises `SandboxError`, or OSError without memory.

    Args:
        argv: the command, by absolute path.
        files: plain names → contents, for its working directory.
        stdin: what it reads.
        limits: what it may use; `wall_s` is up to the caller of `supervise`.
        keep: further descriptors of ours that it gets, under the same numbers. The caller closes them.
        pipes: further pipes to supervise, name → (descriptor to read, most bytes). They are closed with the process.
        at: the level; by default the best one here.
    """
    if sys.platform == "win32":
        raise SandboxError("programs can only be judged on Linux and macOS")
    bad = [name for name in files if name in ("", ".", "..") or "/" in name or "\0" in name]
    if bad:
        raise SandboxError(f"files need plain names, got {bad[0]!r}")
    at = at or level()
    on_disk = os.path.realpath(tempfile.mkdtemp(prefix="vantage-sandbox-")) if at.name != "namespaces" else None
    scratch = on_disk if on_disk is not None and at.name == "rlimits" else SCRATCH
    job = {**levels.job(at, scratch, asdict(limits)), "files": dict(files), "argv": list(argv), "keep": list(keep)}
    own = {name: os.pipe() for name in ("stdout", "stderr", "status")}
    job["status"] = own["status"][1]
    ends = [end for _, end in own.values()]
    try:
        with _unnamed(stdin) as fed, payload(("kernel", "seccomp", "spaces", "stage"), job) as handed:
            stage = [sys.executable, "-I", "-S", "-X", "utf8", "-c", BOOT, str(handed)]
            popen = subprocess.Popen(
                [*levels.command(at, on_disk, scratch), *stage],
                stdin=fed, stdout=own["stdout"][1], stderr=own["stderr"][1], cwd="/", env=levels.environment(scratch),
                pass_fds=(*keep, handed, own["status"][1]), start_new_session=True,
            )  # fmt: skip
    except BaseException:
        for end, _ in own.values():
            os.close(end)
        if on_disk is not None:
            remove(on_disk)
        raise
    finally:
        for end in ends:
            os.close(end)
    most = {"stdout": limits.output_bytes, "stderr": limits.output_bytes, "status": 1 << 16}
    watched = {name: (own[name][0], most[name]) for name in own}
    return Process(popen, {**watched, **(pipes or {})}, on_disk, limits.scratch_bytes)


def outcome(process: Process) -> Outcome:
    """What became of a process that has been supervised; raises SandboxError if it never got as far as the program."""
    lines = process.data["status"].decode("utf-8", "replace").splitlines()
    stderr = process.data["stderr"].decode("utf-8", "replace")
    if process.reason == "exit" and "ready" not in lines:
        said = [*lines, *stderr.strip().splitlines()[-1:], f"status {process.popen.returncode}"]
        raise SandboxError(f"the sandbox did not start: {said[0]}")
    returncode: int | None = process.popen.returncode
    waited = [int(line.split()[1]) for line in lines if line.startswith("status ")]
    if waited:  # process 1 has seen how the program ended
        returncode = os.waitstatus_to_exitcode(waited[0])
    elif returncode is not None and returncode > 128:  # a signal, as bubblewrap hands it on
        returncode = 128 - returncode
    reason = process.reason
    if reason == "exit" and returncode is not None and returncode == -signal.SIGXCPU:
        reason = "cpu"
    stdout = process.data["stdout"].decode("utf-8", "replace")
    return Outcome(stdout, stderr, returncode if process.reason == "exit" else None, reason)


def harness(
    names: Sequence[str],
    data: Any,
    files: Mapping[str, bytes],
    limits: Limits,
    *,
    keep: Sequence[int] = (),
    pipes: Mapping[str, tuple[int, int]] | None = None,
    at: Level | None = None,
) -> Process:
    """Start modules of ours from `verifiers/inside` in the sandbox: the last one's `main(data)` is called.

    `data` is plain data for `marshal`; a program that the module runs can read it. The rest is as for `start`.
    """
    with _failing(pipes or {}), payload(names, data) as handed:
        argv = [sys.executable, "-I", "-X", "utf8", "-c", BOOT, str(handed)]
        return start(argv, files, b"", limits, keep=(*keep, handed), pipes=pipes, at=at)


@contextlib.contextmanager
def _failing(pipes: Mapping[str, tuple[int, int]]) -> Iterator[None]:
    """What fails in here is an error of the sandbox; the pipes, which then have no process, are closed."""
    try:
        yield
    except BaseException as error:
        for descriptor, _ in pipes.values():
            os.close(descriptor)
        if isinstance(error, OSError | MemoryError):
            raise SandboxError(f"no process could be started: {error}") from None
        raise


@contextlib.contextmanager
def payload(names: Sequence[str], data: Any) -> Iterator[int]:
    """A descriptor from which `BOOT` takes modules of `verifiers/inside` and data."""
    packages: list[tuple[str, Any]] = [(name, None) for name in ("vantage", "vantage.verifiers", INSIDE)]
    modules = [(f"{INSIDE}.{name}", _compiled(name)) for name in names]
    with _unnamed(marshal.dumps(([*packages, *modules], modules[-1][0], data))) as descriptor:
        yield descriptor


@functools.cache
def _compiled(name: str) -> types.CodeType:
    spec = importlib.util.find_spec(f"{INSIDE}.{name}")
    return compile(Path(str(spec and spec.origin)).read_bytes(), f"{name}.py", "exec", dont_inherit=True)


@contextlib.contextmanager
def _unnamed(content: bytes) -> Iterator[int]:
    """A descriptor of a file without a name, positioned at its start."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield file.fileno()


def encoded(text: str | bytes) -> bytes:
    """UTF-8; lone surrogates, which a tokenizer may produce, are kept as they are."""
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


_lock = threading.Lock()


def level() -> Level:
    """The best level that works here; found out once. Warns if it is the weakest. Raises SandboxError if none works."""
    with _lock:
        return _best()


@functools.cache
def _best() -> Level:
    errors = []
    for candidate in levels.candidates():
        problem = _problem(candidate)
        if problem is None:
            if candidate.name == "rlimits":
                warnings.warn(f"programs run without namespaces here ({candidate.describe()})", stacklevel=4)
            return candidate
        errors.append(f"{candidate.name}: {problem}")
    raise SandboxError(f"no sandbox works here: {'; '.join(errors)}")


def working() -> list[Level]:
    """All levels that work here, best first; of each name the best."""
    found: dict[str, Level] = {}
    for candidate in levels.candidates():
        if candidate.name not in found and _problem(candidate) is None:
            found[candidate.name] = candidate
    return list(found.values())


def _problem(candidate: Level) -> str | None:
    """What keeps a level from working, None if it works."""
    try:
        found = run(PROBE, at=candidate)
    except SandboxError as error:
        return str(error)
    last = found.stderr.strip().splitlines()[-1:]
    return None if found.ok and found.stdout == "works\n" else f"{found.reason} {found.returncode} {' '.join(last)}"
