"""What runs in a worker process? One verifier; it gets a response and its columns, and answers with a score.

The parent (`vantage.verifiers.workers`) sends pickles, since columns may hold anything; it gets JSON back, since what comes
out of a process that has read hostile text must not be able to do anything. Each message has its length in eight bytes before
it. This module and what it imports must stay cheap to import, and must not import torch.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pickle
import signal
import sys
from collections.abc import Mapping
from typing import Any

from vantage.plugins import load_object, one_line
from vantage.verifiers.base import judge_one

HEADER = 8
GRACE = 2.0
"""Seconds after the parent's limit at which the kernel ends a call by itself, should there be no parent any more."""
EXHAUSTED = "ran out of memory"
LONGEST_NOTE = 500


def make(spec: str, options: Mapping[str, Any]) -> Any:
    """The verifier that `MODULE:NAME` or `FILE.py:NAME`, called with options, gives."""
    if ".py:" in spec:
        found = load_object(spec, "verifier")
    else:
        module, _, name = spec.partition(":")
        found = getattr(importlib.import_module(module), name)
    return found(**options)


def main() -> None:
    """Serve requests on standard input until it ends."""
    reader, writer = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):  # what a verifier prints must not end up between the messages
        os.dup2(null, standard)
    setup = pickle.loads(_exactly(reader, _size(reader)))
    try:
        limit_memory(setup["memory_bytes"])
        verifier = make(setup["make"], setup["options"])
        if hasattr(verifier, "prepare"):  # imports and caches that the first response should not pay for
            verifier.prepare()
        if setup["confined"]:
            confine()
    except BaseException as error:
        send(writer, {"failed": one_line(error, LONGEST_NOTE)})
        return
    send(writer, {"ready": True})
    with contextlib.suppress(EOFError):
        while True:
            # The request is read as bytes first: a column that can not be unpickled here costs that one response.
            answer = _answer(verifier, _exactly(reader, _size(reader)), setup["seconds"])
            send(writer, answer)
            if answer["note"] == EXHAUSTED:  # what is left of such a process can not be relied on
                return


def _answer(verifier: Any, request: bytes, seconds: float) -> dict[str, Any]:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds + GRACE)
    try:
        text, columns = pickle.loads(request)
        verdict = judge_one(verifier, text, columns)
        return {"score": verdict.score, "note": verdict.note and verdict.note[:LONGEST_NOTE]}
    except MemoryError:
        return {"score": None, "note": EXHAUSTED}
    except BaseException as error:  # SystemExit, or a column whose class is not known here
        return {"score": None, "note": f"raised {one_line(error)}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def limit_memory(most: int | None) -> None:
    """Have allocations beyond so many bytes of address space fail, where the system has such a limit; no core dumps."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if most is not None:
        with contextlib.suppress(ValueError, OSError):  # macOS
            resource.setrlimit(resource.RLIMIT_AS, (most, most))


def confine() -> None:
    """Give up network, new processes, signals to others and changes to files for good, as far as the kernel has means.

    Files can still be read, since verifiers import what they need when they need it. On systems without seccomp and
    Landlock nothing changes.
    """
    if sys.platform != "linux":
        return
    from vantage.verifiers.inside import kernel, seccomp

    with contextlib.suppress(OSError):
        kernel.no_new_privileges()
        kernel.landlock(["/"], [], [os.devnull])
    with contextlib.suppress(OSError):
        if seccomp.available():
            seccomp.install(processes=False)


def send(writer: int, message: Any) -> None:
    """Write one message; JSON in ASCII."""
    content = json.dumps(message).encode("ascii")
    rest = memoryview(len(content).to_bytes(HEADER, "big") + content)
    while rest:
        rest = rest[os.write(writer, rest) :]


def _size(reader: int) -> int:
    return int.from_bytes(_exactly(reader, HEADER), "big")


def _exactly(reader: int, size: int) -> bytes:
    taken = bytearray()
    while len(taken) < size:
        chunk = os.read(reader, min(size - len(taken), 1 << 20))
        if not chunk:
            raise EOFError
        taken += chunk
    return bytes(taken)


if __name__ == "__main__":
    main()
    sys.exit()
