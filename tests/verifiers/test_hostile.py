"""The hostile-input table: every verifier gets every response of it; all end in 0 or unscorable, in time, no harm done."""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.verifiers.hostile import ESCAPES, NESTED, TEXTS, responses
from vantage.rewards.functions import RewardSet
from vantage.rewards.verifiers import verifier, verifier_names
from vantage.tasks import BUILT_IN, get_task
from vantage.verifiers import code, instructions, tools
from vantage.verifiers.base import BatchVerifier, judge
from vantage.verifiers.constraints import FAMILIES
from vantage.verifiers.math import MathVerifier
from vantage.verifiers.sandbox import Limits
from vantage.verifiers.workers import WorkerLimits

MB = 1 << 20
QUICK = WorkerLimits(seconds=1.0, memory_bytes=512 * MB)
BOMB = {"name": "f", "parameters": {"properties": {"x": {"type": "string", "pattern": "^(a+)+$"}}, "required": ["x"]}}
SMALL = Limits(cpu_s=1, memory_bytes=256 * MB, file_bytes=MB, scratch_bytes=4 * MB, output_bytes=50_000)

MAKE: dict[str, Callable[[], Any]] = {
    "math": lambda: MathVerifier(seconds=1.0, workers=2, memory_bytes=512 * MB),
    "code": lambda: code.cached(test_s=1.0, wall_s=2.0, limits=SMALL),
    "tools": lambda: tools.isolated(limits=QUICK, workers=2),
    "instructions": lambda: instructions.isolated(limits=QUICK, workers=2),
}
"""What `--reward NAME` takes, with less time."""
ROWS: dict[str, dict[str, Any]] = {
    "math": {"answer": r"\frac{\sqrt{3}}{2}"},
    "code": {"inputs": ["1"], "outputs": ["1"]},
    "tools": {"calls": [{"name": "f", "arguments": {"x": "aaa"}}], "tools": [BOMB]},
    "instructions": {
        "instruction_id_list": [name for name, family in FAMILIES.items() if not family.arguments]
        + ["startend:end_checker"],
        "kwargs": [None] * sum(not family.arguments for family in FAMILIES.values()) + [{"end_phrase": "fig."}],
    },
}
RIGHT = {
    "math": r"\boxed{\sqrt{3}/2}",
    "code": "```python\nprint(input())\n```",
    "tools": '{"name": "f", "arguments": {"x": "aaa"}}',
    "instructions": None,  # no text follows all of these at once
}


def test_the_table_has_every_verifier() -> None:
    assert set(MAKE) == set(verifier_names())


@pytest.mark.parametrize("world", BUILT_IN)
def test_embedded_worlds_need_no_workers_for_hostile_text(world: str) -> None:
    """They judge in the run itself: each text has to be answered there, at once, by code that executes nothing."""
    task = get_task(world)
    rewards = RewardSet(task.reward_funcs)
    texts = list({**TEXTS, **NESTED}.values())
    start = time.process_time()
    for problem in task.train[:5]:
        found = rewards(
            prompts=[problem.prompt] * len(texts), completions=texts, completion_ids=[[]] * len(texts),
            columns={name: [value] * len(texts) for name, value in problem.columns.items()},
        )  # fmt: skip
        assert found.total == [0.0] * len(texts)
        assert not found.problems
    assert time.process_time() - start < 15  # about 1


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, socket.socket]]:
    """A folder that anyone may write to, a secret, and a port that waits."""
    tmp_path.chmod(0o777)
    (tmp_path / "secret").write_text("hunter2")
    (tmp_path / "secret").chmod(0o666)
    monkeypatch.setenv("SOME_TOKEN", "hunter2")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        yield tmp_path, listener


@pytest.fixture
def judged(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A verifier by name, whose workers end with the test."""
    made = MAKE[request.param]()
    yield made
    if hasattr(made, "close"):
        made.close()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "judged"), [(name, name) for name in MAKE], indirect=["judged"], ids=list(MAKE))
def test_every_verifier_survives_the_table(name: str, judged: Any, trap: tuple[Path, socket.socket]) -> None:
    folder, listener = trap
    before = set(children())
    texts = responses(str(folder), listener.getsockname()[1])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    right = RIGHT[name]
    asked = [*texts.values(), *([right] if right else [])]
    start = time.monotonic()
    found = judge(judged, asked, [ROWS[name]] * len(asked))
    seconds = time.monotonic() - start
    rewarded = {n: v for n, v in zip(texts, found, strict=False) if v.score not in (0.0, None)}
    assert not rewarded
    if right:
        assert found[-1].score == 1.0  # and the verifier lives
    assert seconds < 100  # about 15 on two idle cores
    assert sorted(path.name for path in folder.iterdir()) == ["secret"]
    assert (folder / "secret").read_text() == "hunter2"
    with pytest.raises(TimeoutError):
        listener.accept()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300_000  # kB
    if hasattr(judged, "close"):
        judged.close()
    deadline = time.monotonic() + 3
    while set(children()) - before:
        assert time.monotonic() < deadline, "processes are left behind"
        time.sleep(0.05)


def children() -> list[str]:
    """Processes that this one has started and that are there."""
    found = Path(f"/proc/self/task/{os.getpid()}/children")
    return found.read_text().split() if found.exists() else []


def test_the_traps_work(trap: tuple[Path, socket.socket]) -> None:
    """What the programs try succeeds outside of the sandbox: the table's zeros are the verifier's doing."""
    folder, listener = trap
    for name in ("network", "read outside", "write outside", "secret of the environment"):
        printed: list[Any] = []
        program = ESCAPES[name].replace("FOLDER", str(folder)).replace("PORT", str(listener.getsockname()[1]))
        exec(program, {"__name__": "program", "print": printed.append})
        assert printed == [1], name


# Isolated tools and instructions.


def test_a_bomb_of_a_schema_costs_its_own_response_only() -> None:
    guarded = tools.isolated(limits=WorkerLimits(seconds=1.5), workers=1)
    bomb = '{"name": "f", "arguments": {"x": "' + "a" * 60 + 'b"}}'
    found = guarded.judge([bomb, RIGHT["tools"] or "", "no call"], [ROWS["tools"]] * 3)
    assert [verdict.score for verdict in found] == [0.0, 1.0, 0.0]
    assert found[0].note == "took longer than 1.5 s"
    start = time.monotonic()
    assert guarded.score(bomb, {**ROWS["tools"], "id": 7}) == 0.0  # from the cache: other columns do not count
    assert time.monotonic() - start < 1
    guarded.close()


def test_a_row_that_is_itself_a_bomb_is_not_the_responses_fault() -> None:
    guarded = tools.isolated(limits=WorkerLimits(seconds=0.5), workers=1)
    calls = [{"name": "f", "arguments": {"x": "a" * 60 + "b"}}]
    rows = [{"calls": calls, "tools": [BOMB], "id": n} for n in range(3)]
    said = guarded.complaint(rows[0])
    assert said == "looking at its columns took longer than 0.5 s"
    different = [{"calls": [{"name": "f", "arguments": {"x": f"{'a' * 60}{n}"}}], "tools": [BOMB]} for n in range(6)]
    start = time.monotonic()
    assert sum(guarded.complaint(row) is not None for row in different) == 2  # then it gives up
    assert time.monotonic() - start < 12
    guarded.close()


@pytest.mark.parametrize(
    ("name", "text", "row", "score", "said"),
    [
        ("tools", RIGHT["tools"], ROWS["tools"], 1.0, None),
        ("tools", "x", {"calls": 3}, None, "column 'calls': 3 is no call"),
        ("instructions", "no fig.", {"instruction_id_list": ["punctuation:no_comma"]}, 1.0, None),
        ("instructions", "a, b", {"instruction_id_list": ["punctuation:no_comma"]}, 0.0, None),
        ("instructions", "a", {"instruction_id_list": "x"}, None, "column 'instruction_id_list' is text that is not JSON"),
    ],
)  # fmt: skip
def test_isolated_they_say_what_they_say_in_process(
    name: str, text: str, row: dict[str, Any], score: float | None, said: str | None
) -> None:
    isolated, plain = PAIRS[name]
    assert isolated.score(text, row) == plain.score(text, row) == score
    assert (isolated.name, isolated.version) == (plain.name, plain.version)
    assert isolated.complaint(row) == plain.complaint(row)
    assert (isolated.complaint(row) or "").startswith(said or "")
    assert (said is None) == (isolated.complaint(row) is None)


PAIRS = {
    "tools": (tools.isolated(workers=1), tools.ToolCallVerifier()),
    "instructions": (instructions.isolated(workers=1), instructions.InstructionVerifier()),
}


def test_options_and_column_names_reach_the_workers() -> None:
    guarded = instructions.isolated(workers=1, share=True, ids_column="ids")
    row = {"ids": ["punctuation:no_comma", "startend:quotation"], "kwargs": None, "other": object()}
    assert guarded.score("no comma", row) == 0.5
    guarded.close()


def test_what_rewards_name_is_isolated() -> None:
    from vantage.verifiers.cache import Cached
    from vantage.verifiers.guarded import Guarded

    assert isinstance(verifier("tools"), Guarded)
    assert isinstance(verifier("instructions"), Guarded)
    assert isinstance(verifier("math"), MathVerifier)
    assert isinstance(verifier("code"), Cached)
    assert all(isinstance(verifier(name), BatchVerifier) for name in verifier_names())


def test_a_missing_package_is_said_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers are other processes: they are made to miss it by a module of that name that fails."""
    from vantage.errors import UserError

    broken = tools.isolated(workers=1)
    monkeypatch.setattr(
        type(broken._judge), "judge",
        lambda self, texts, rows: [judge_missing()],
    )  # fmt: skip
    with pytest.raises(UserError, match=r"^column 'tools' describes"):
        broken.complaint(ROWS["tools"])


def judge_missing() -> Any:
    from vantage.verifiers.base import Verdict

    return Verdict(None, "raised UserError: column 'tools' describes tools and the package jsonschema is missing")
