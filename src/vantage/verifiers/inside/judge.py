"""The tests' side of unit tests: run them against a program in another sandbox and attest every verdict.

The program never runs in this process and can not see it. Verdicts go out on a descriptor of their own, each line with a
nonce that only this process and the parent know.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from vantage.verifiers.inside.peer import LostError, Peer

MODULES = ("solution", "main", "program")
"""Names under which tests may import the program."""
ALSO = {"numpy": "numpy", "np": "numpy"}
"""Modules that tests may use without an import of their own, beside the standard library's: name → module."""


def main(data: dict[str, Any]) -> None:
    """Run the tests from number `first` on.

    Lines go out: `NONCE tests N` first, then `NONCE I pass`, `NONCE I fail` or `NONCE I lost` (the program has gone) for
    test number I, or `NONCE I unable` if the tests need a module that is not there; or `NONCE 0 dead` if there is no
    program to test. It stops at the first failure unless `all` is set, and always at a loss.
    """
    nonce, verdicts = data.pop("nonce"), data["verdicts"]
    if sys.platform == "linux":
        from vantage.verifiers.inside import kernel

        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # no looking into this process for others of the same user

    def say(text: str) -> None:
        os.write(verdicts, f"{nonce} {text}\n".encode())

    peer = Peer(data["reader"], data["writer"], trusting=False)
    sources = _parsed(data)
    say(f"tests {sum(count_tests(tree) for tree in sources)}")
    try:
        namespace = _namespace(peer, sources)
    except (LostError, ValueError, TypeError, KeyError, IndexError):
        say("0 dead")
        os._exit(0)
    for number, verdict in enumerate(_verdicts(sources, namespace, data["first"])):
        if verdict != "skip":
            say(f"{number} {verdict}")
        if verdict in ("lost", "unable") or (verdict == "fail" and not data["all"]):
            break
    os._exit(0)


def _parsed(data: dict[str, Any]) -> list[ast.Module]:
    """The sources, with the setup at the start of the first; one that is not Python is a test that fails."""
    setup, *found = (_parse(source) for source in (data["setup"], *data["sources"]))
    found[0].body[:0] = setup.body
    defined = {node.name for tree in found for node in tree.body if isinstance(node, ast.FunctionDef)}
    if data["function"] and "check" in defined and not any(_calls(tree, "check") for tree in found):
        found[-1].body += _parse(f"check({data['function']})").body
    return found


def _parse(source: str) -> ast.Module:
    try:
        return ast.parse(source, "tests.py")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.parse("assert False, 'the test is not Python'")


def _calls(tree: ast.Module, name: str) -> bool:
    return any(
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
        and node.value.func.id == name
        for node in tree.body
    )


def _cases(tree: ast.Module) -> list[tuple[str, str | None]]:
    """Test functions and methods that a runner would find: (function, None) or (class, method)."""
    found: list[tuple[str, str | None]] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test") and not _calls(tree, node.name):
            if not node.args.args or node.decorator_list:
                found.append((node.name, None))
        elif isinstance(node, ast.ClassDef) and (
            node.name.startswith("Test") or any("TestCase" in ast.dump(base) for base in node.bases)
        ):
            methods = [child.name for child in node.body if isinstance(child, ast.FunctionDef)]
            found += [(node.name, method) for method in methods if method.startswith("test")]
    return found


def _acts(node: ast.stmt) -> bool:
    """Whether a statement does more than define something."""
    quiet = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    return not isinstance(node, quiet) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _is_whole(tree: ast.Module) -> bool:
    """Whether a source is one test: it has no assertion at the top and no test function, but it does something."""
    asserts = any(isinstance(node, ast.Assert) for node in tree.body)
    return not asserts and not _cases(tree) and any(_acts(node) for node in tree.body)


def count_tests(tree: ast.Module) -> int:
    """Assertions at the top, test functions, test methods; or one for a source that is run as a whole."""
    return sum(isinstance(node, ast.Assert) for node in tree.body) + len(_cases(tree)) + _is_whole(tree)


def _verdicts(sources: list[ast.Module], namespace: dict[str, Any], first: int) -> Iterator[str]:
    """A verdict for each test in order: pass, fail, lost. Tests before `first` are left out, their setup is not."""
    number = 0
    for tree in sources:
        whole, broken = _is_whole(tree), ""
        if whole and number < first:
            yield "skip"
            number += 1
            continue
        for node in tree.body:
            test = isinstance(node, ast.Assert)
            result = "skip" if test and number < first else broken
            if not result:
                result = _tried(functools.partial(_execute, node, namespace))
            if test:
                yield result
                number += 1
            elif result != "pass":
                broken = "unable" if result == "fail" and _lacks_module(node) else result
        for name, method in _cases(tree):
            result = "skip" if number < first else broken
            yield result or _tried(functools.partial(_run_case, namespace, name, method))
            number += 1
        if whole:
            yield broken or "pass"
            number += 1


def _tried(action: Callable[[], None]) -> str:
    try:
        action()
    except LostError:
        return "lost"
    except BaseException as error:
        print(f"{type(error).__name__}: {error}"[:500], file=sys.stderr, flush=True)
        return "fail"
    return "pass"


def _lacks_module(node: ast.stmt) -> bool:
    """Whether the tests import a module that is not installed: nothing that the program could help."""
    if isinstance(node, ast.ImportFrom):
        names = [node.module or ""]
    elif isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        return False
    roots = {name.partition(".")[0] for name in names} - set(MODULES)
    return any(importlib.util.find_spec(root) is None for root in roots if root and root not in sys.modules)


def _execute(node: ast.stmt, namespace: dict[str, Any]) -> None:
    exec(compile(ast.Module([node], []), "tests.py", "exec", dont_inherit=True), namespace)


def _run_case(namespace: dict[str, Any], name: str, method: str | None) -> None:
    """Run a test function, once for every set of parameters that a pytest mark gives, or a method of a test class."""
    target = namespace[name]
    if method is None:
        for arguments in _parameters(target):
            target(**arguments)
        return
    import unittest

    if isinstance(target, type) and issubclass(target, unittest.TestCase):
        result = unittest.TestResult()
        unittest.TestSuite([target(method)]).run(result)
        problems = [*result.errors, *result.failures, *result.skipped]
        if any("peer.LostError" in text for _, text in problems):
            raise LostError("the program has ended")
        if problems or result.unexpectedSuccesses:
            raise AssertionError(problems[0][1][-400:] if problems else "passed, against expectation")
        return
    case = target()
    with contextlib.suppress(AttributeError):
        case.setup_method()
    getattr(case, method)()


def _parameters(function: Any) -> Iterator[dict[str, Any]]:
    chosen: list[dict[str, Any]] = [{}]
    for mark in getattr(function, "pytestmark", []):
        if mark.name == "parametrize":
            names = (
                [x.strip() for x in mark.args[0].split(",")] if isinstance(mark.args[0], str) else list(mark.args[0])
            )
            rows = [row if len(names) > 1 else (row,) for row in mark.args[1]]
            chosen = [{**old, **dict(zip(names, row, strict=True))} for old in chosen for row in rows]
    return iter(chosen)


def _namespace(peer: Peer, sources: list[ast.Module]) -> dict[str, Any]:
    """Globals of the tests: names that the program defines, as far as the tests use them, and the program as a module."""
    message = peer.receive()
    if message[0] != "names":
        raise LostError("no names")
    described = {str(name): rest for name, *rest in message[1] if not str(name).startswith("__")}
    used = {node.id for tree in sources for node in ast.walk(tree) if isinstance(node, ast.Name)}
    namespace: dict[str, Any] = {"__name__": "tests"}
    sys.modules["tests"] = types.ModuleType("tests")
    sys.modules["tests"].__dict__.update(namespace)
    module = types.ModuleType("solution")
    for name, (kind, content, attribute) in described.items():
        value = _bound(peer, name, kind, content, attribute)
        setattr(module, name, value)
        if name in used and (not hasattr(builtins, name) or name == _only_builtin(sources)):
            namespace[name] = value
    module.__dict__["__all__"] = [name for name in described if not hasattr(builtins, name)]
    sys.modules.update(dict.fromkeys(MODULES, module))
    dotted = {
        node.value.id
        for tree in sources
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    for name in used & (sys.stdlib_module_names | ALSO.keys()):
        # A test with `math.isclose` means the module, whatever the program calls so; one with `select(3)` may not.
        if name in dotted or name not in namespace:
            with contextlib.suppress(ImportError):
                namespace[name] = importlib.import_module(ALSO.get(name, name))
    return namespace


def _only_builtin(sources: list[ast.Module]) -> str | None:
    """The one builtin that tests call, if it is the only name they call: then the program may redefine it.

    There are tasks such as "write a function sum". In `abs(f(2) - 1.5) < 1e-6`, though, `abs` must not be the program's.
    """
    called = {
        node.func.id
        for tree in sources
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    return called.pop() if len(called) == 1 else None


def _bound(peer: Peer, name: str, kind: str, content: Any, attribute: str | None) -> Any:
    if kind == "import" and (str(content).partition(".")[0] in sys.stdlib_module_names | ALSO.keys()):
        with contextlib.suppress(ImportError, AttributeError):
            module = importlib.import_module(content)
            # Under its own name only: a program can not make another function out of a standard one.
            return module if attribute is None else getattr(module, name)
    if kind == "error":
        parents = [getattr(builtins, parent, None) for parent in content[1:]]
        base = next((x for x in parents if isinstance(x, type) and issubclass(x, Exception)), Exception)
        peer.errors[content[0]] = type(name, (base,), {})
        return peer.errors[content[0]]
    return peer.unpack(content) if kind == "value" else None
