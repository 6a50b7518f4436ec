"""The program's side of unit tests: run the program, say what it defines, serve requests of the tests.

Everything here is in the hands of the program; the other side takes it for nothing but the program's word.
"""

from __future__ import annotations

import os
import sys
import types
from typing import Any

from vantage.verifiers.inside.peer import Peer


def main(data: dict[str, Any]) -> None:
    """Serve until the other side goes."""
    peer = Peer(data["reader"], data["writer"], trusting=True)
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    try:
        with open("program.py", "rb") as file:
            exec(compile(file.read(), "program.py", "exec", dont_inherit=True), module.__dict__)
        peer.send(["names", [[name, *_described(peer, name, value)] for name, value in list(vars(module).items())]])
        while True:
            message = peer.receive()
            peer.serve(message[1])
    except BaseException as error:
        print(f"{type(error).__name__}: {error}"[:500], file=sys.stderr, flush=True)
    os._exit(1)


def _described(peer: Peer, name: str, value: Any) -> list[Any]:
    """How the tests get at a global name: by import, as an exception class, or through the peer."""
    if isinstance(value, types.ModuleType):
        return ["import", value.__name__, None]
    if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == "solution":
        return ["error", [kind.__name__ for kind in value.__mro__], None]
    home = getattr(value, "__module__", None)
    if isinstance(home, str) and home != "solution" and getattr(sys.modules.get(home), name, None) is value:
        return ["import", home, name]
    return ["value", peer.pack(value), None]
