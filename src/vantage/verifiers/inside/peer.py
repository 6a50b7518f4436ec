"""How does one process use the objects of another that it does not trust? Requests over two pipes.

Unit tests run in one sandbox, the program that they test in another; a test that calls a function of the program gets a
`Remote` and the result comes back by value (`wire`), or as a `Remote` where it is an object of the program's own. So the
comparison is made where the program can not reach, on data whose type the program does not choose.

What a `Remote` will not do, because a made-up object could then pass any test: equal a plain value, be smaller or larger
than one, become a number, or yield a plain number when a plain number is added to it or the like.
"""

from __future__ import annotations

import builtins
import itertools
import json
import operator
import os
import types
from collections import deque
from collections.abc import Callable
from typing import Any

from vantage.verifiers.inside.wire import NotPlainError, decode, dumps, encode

MOST = 32 << 20
"""Bytes of a message."""
MUTABLE = (list, dict, set, bytearray, deque)
ARITHMETIC = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and_",
    "or_",
    "xor",
    "lshift",
    "rshift",
)
HARMLESS: dict[str, Callable[..., Any]] = {
    "len": len, "iter": iter, "next": next, "str": str, "repr": repr, "hash": hash, "bool": bool,
    "contains": operator.contains, "getitem": operator.getitem,
}  # fmt: skip
SPECIAL: dict[str, Callable[..., Any]] = {
    **HARMLESS,
    **{name: getattr(operator, name) for name in (*ARITHMETIC, "eq", "lt", "le", "gt", "ge", "neg", "pos", "invert")},
    **{name: getattr(operator, name) for name in ("setitem", "delitem")},
    "isinstance": lambda kind, value: isinstance(value, kind),
    "enter": lambda target: type(target).__enter__(target),
    "exit": lambda target: type(target).__exit__(target, None, None, None),
    "reversed": reversed,
}  # fmt: skip


class LostError(Exception):
    """The other process has gone, or talks nonsense."""


class Peer:
    """One end. The trusting end serves every request; the other one only what is harmless with what it has passed itself.

    Args:
        reader, writer: descriptors.
        trusting: whether the other end may have everything of this one.
    """

    def __init__(self, reader: int, writer: int, trusting: bool) -> None:
        self.reader, self.writer, self.trusting = reader, writer, trusting
        self.passed: dict[int, Any] = {}
        self.errors: dict[str, type[Exception]] = {}
        """Exceptions of the other end that have a class here."""
        self._numbers = itertools.count()

    def ask(self, *request: Any) -> Any:
        """The result of a request (operation, operands...). Raises what the operation raised there, or `LostError`."""
        self.send(["ask", [self.pack(x) for x in request]])
        while True:
            message = self.receive()
            if message[0] == "ask":
                self.serve(message[1])
            elif message[0] == "ok":
                # Arguments that the call has changed are changed here as well.
                for place, changed in message[2]:
                    _put(request[2][place], self.unpack(changed))
                return self.unpack(message[1])
            elif message[0] == "bad":
                raise self._error(message[1], str(message[2]))
            else:
                raise LostError("a message of no known kind")

    def serve(self, request: list[Any]) -> None:
        """Answer a request of the other end."""
        try:
            operation, *operands = [self.unpack(x) for x in request]
            result = self._serve(operation, operands)
            changed = []
            if operation == "call":
                for place, (value, before) in enumerate(zip(operands[1], decode_list(request[2]), strict=False)):
                    after = self.pack(value) if isinstance(value, MUTABLE) else before
                    changed += [[place, after]] if after != before else []
            answer = ["ok", self.pack(result), changed]
        except LostError:
            raise
        except BaseException as error:
            answer = ["bad", [kind.__name__ for kind in type(error).__mro__], str(error)[:2000]]
        self.send(answer)

    def _serve(self, operation: Any, operands: list[Any]) -> Any:
        target = operands[0]
        if operation == "call" and (self.trusting or callable(target)):
            return target(*operands[1], **operands[2])
        if operation in ("get", "set") and (self.trusting or _is_open(target, operands[1])):
            return getattr(target, operands[1]) if operation == "get" else setattr(target, operands[1], operands[2])
        if operation in (SPECIAL if self.trusting else HARMLESS):
            return SPECIAL[operation](*operands)
        raise PermissionError(f"{operation} of an object of the tests")

    def pack(self, value: Any) -> Any:
        """A value as it is sent."""
        return encode(value, self._reference)

    def unpack(self, data: Any) -> Any:
        """A value as it was sent; one's own object if it was passed before."""
        return decode(data, self._resolve)

    def _reference(self, value: Any) -> Any:
        if isinstance(value, Remote) and object.__getattribute__(value, "_peer") is self:
            return {"yours": object.__getattribute__(value, "_number")}
        name = getattr(value, "__name__", "") if isinstance(value, type) else ""
        if name and getattr(builtins, name, None) is value:
            return {"builtin": name}
        if type(value).__module__ == "numpy" and type(value).__name__ == "ndarray" and value.dtype.kind in "biuf":
            return {"array": [value.dtype.str, self.pack(value.tolist())]}
        if not self.trusting and isinstance(value, type | types.ModuleType | types.FrameType | types.CodeType):
            raise NotPlainError(f"{type(value).__name__} can not be passed to the program")
        number = next(self._numbers)
        self.passed[number] = value
        return {"mine": number}

    def _resolve(self, data: Any) -> Any:
        ((tag, content),) = data.items()
        if tag == "yours":
            return self.passed[content]
        if tag == "mine":
            return Remote(self, int(content))
        if tag == "builtin" and isinstance(getattr(builtins, content, None), type):
            return getattr(builtins, content)
        if tag == "array":
            import numpy

            return numpy.array(self.unpack(content[1]), dtype=numpy.dtype(str(content[0])))
        raise LostError("a value of no known kind")

    def _error(self, names: list[str], text: str) -> BaseException:
        for name in names:
            kind = self.errors.get(name) or getattr(builtins, name, None)
            if isinstance(kind, type) and issubclass(kind, Exception):
                try:
                    return kind(text)
                except TypeError:  # UnicodeDecodeError and the like want more
                    continue
        return RuntimeError(f"{names[0]}: {text}")

    def send(self, message: Any) -> None:
        """Send a message: its length in eight bytes, then JSON."""
        content = dumps(message)
        rest = memoryview(len(content).to_bytes(8, "big") + content)
        try:
            while rest:
                rest = rest[os.write(self.writer, rest) :]
        except OSError as error:
            raise LostError(str(error)) from None

    def receive(self) -> Any:
        """The next message; raises `LostError`."""
        size = int.from_bytes(self._exactly(8), "big")
        if size > MOST:
            raise LostError("a message too long")
        try:
            message = json.loads(self._exactly(size))
            if isinstance(message, list) and len(message) >= 2:
                return message
        except (ValueError, RecursionError):
            pass
        raise LostError("a message that can not be read")

    def _exactly(self, size: int) -> bytes:
        taken = bytearray()
        while len(taken) < size:
            chunk = os.read(self.reader, min(size - len(taken), 1 << 20))
            if not chunk:
                raise LostError("the other process has ended")
            taken += chunk
        return bytes(taken)


def _is_open(target: Any, name: Any) -> bool:
    """Whether the program may use an attribute: a public one of an instance of a class that the tests define.

    Attributes of functions, generators, modules and the like lead to the globals of the tests.
    """
    return type(target).__module__ == "tests" and isinstance(name, str) and not name.startswith("_")


def decode_list(data: Any) -> list[Any]:
    """The still encoded items of an encoded list or tuple."""
    return list(data["t"]) if isinstance(data, dict) else list(data)


def _put(target: Any, value: Any) -> None:
    if isinstance(target, list | bytearray):
        target[:] = value
    else:
        target.clear()
        target.extend(value) if isinstance(target, deque) else target.update(value)


class Remote:
    """An object of the other process."""

    __slots__ = ("_number", "_peer")

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it there."""
        return _ask(self, "call", list(args), kwargs)

    def __getattr__(self, name: str) -> Any:
        return _ask(self, "get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self, "set", name, value)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and _ask(self, "isinstance", value) is True

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Remote) and _ask(self, "eq", other) is True)

    def __hash__(self) -> int:
        return hash(_plain(_ask(self, "hash"), int))

    def __bool__(self) -> bool:
        return bool(_plain(_ask(self, "bool"), bool))

    def __len__(self) -> int:
        return int(_plain(_ask(self, "len"), int))

    def __str__(self) -> str:
        return str(_plain(_ask(self, "str"), str))

    def __repr__(self) -> str:
        return str(_plain(_ask(self, "repr"), str))

    def __contains__(self, item: Any) -> bool:
        return _ask(self, "contains", item) is True

    def __getitem__(self, key: Any) -> Any:
        return _ask(self, "getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _ask(self, "setitem", key, value)

    def __delitem__(self, key: Any) -> None:
        _ask(self, "delitem", key)

    def __iter__(self) -> Any:
        found = _ask(self, "iter")
        return found if isinstance(found, Remote) else iter(found)

    def __next__(self) -> Any:
        return _ask(self, "next")

    def __reversed__(self) -> Any:
        return _ask(self, "reversed")

    def __neg__(self) -> Any:
        return _ask(self, "neg")

    def __enter__(self) -> Any:
        return _ask(self, "enter")

    def __exit__(self, *error: Any) -> None:
        _ask(self, "exit")


def _ask(remote: Remote, operation: str, *operands: Any) -> Any:
    peer: Peer = object.__getattribute__(remote, "_peer")
    return peer.ask(operation, remote, *operands)


def _plain(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"an object of the program gave {type(value).__name__} for {kind.__name__}")
    return value


def _ordering(name: str) -> Callable[[Any, Any], Any]:
    def compare(self: Remote, other: Any) -> Any:
        return _ask(self, name, other) is True if isinstance(other, Remote) else NotImplemented

    return compare


def _arithmetic(name: str, swapped: bool) -> Callable[[Any, Any], Any]:
    def compute(self: Remote, other: Any) -> Any:
        peer: Peer = object.__getattribute__(self, "_peer")
        result = peer.ask(name, other, self) if swapped else peer.ask(name, self, other)
        if not isinstance(other, Remote) and not isinstance(result, Remote):
            raise TypeError(f"an object of the program and a {type(other).__name__} gave a {type(result).__name__}")
        return result

    return compute


for _name in ("lt", "le", "gt", "ge"):
    setattr(Remote, f"__{_name}__", _ordering(_name))
for _name in ARITHMETIC:
    setattr(Remote, f"__{_name.strip('_')}__", _arithmetic(_name, swapped=False))
    setattr(Remote, f"__r{_name.strip('_')}__", _arithmetic(_name, swapped=True))
