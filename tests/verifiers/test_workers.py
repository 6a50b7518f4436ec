"""Worker processes: whatever a verifier does in there, the others are judged, in time, and nothing is left behind."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.verifiers.hazards import Hazard
from vantage.errors import UserError
from vantage.rewards.functions import RewardSet
from vantage.rewards.limits import TooSlow, within
from vantage.verifiers.base import Verdict, judge, reward_function
from vantage.verifiers.inside import kernel, seccomp
from vantage.verifiers.workers import Isolated, WorkerLimits, Workers, default_count

MAKE = "tests.verifiers.hazards:Hazard"
LIMITS = WorkerLimits(seconds=1.0, memory_bytes=160 << 20)


@pytest.fixture(scope="module")
def pool():
    workers = Workers(MAKE, count=2, limits=LIMITS)
    yield workers
    workers.close()


def verdicts(workers, *texts, columns=None):
    return workers.judge(texts, [columns or {}] * len(texts))


def test_a_batch_comes_back_in_order(pool):
    texts = ["x" * (n % 7) for n in range(50)]
    assert [verdict.score for verdict in verdicts(pool, *texts)] == [n % 7 for n in range(50)]
    assert pool.judge([], []) == []


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("hang", "took longer than 1 s!"),
        ("deaf", "took longer than 1 s!"),
        ("backtrack", "took longer than 1 s!"),
        ("eat", "ran out of memory!"),
        ("crash", "its worker died (SIGSEGV)!"),
        ("leave", "raised SystemExit: 0"),
        ("fail a\nb", "raised ValueError: a b"),
        ("return float('nan')", "returned nan"),
        ("return float('inf')", "returned inf"),
        ("return 'one'", "returned str where a number is due"),
        ("return None", None),
    ],
)
def test_what_goes_wrong_costs_that_one_response(pool, text, note):
    start = time.monotonic()
    found = verdicts(pool, "ab", text, "abc")
    fatal = note is not None and note.endswith("!")
    assert found == [Verdict(2.0), Verdict(None, note and note.rstrip("!"), fatal), Verdict(3.0)]
    assert time.monotonic() - start < 6


def test_endless_recursion_is_an_error_like_any_other(pool):
    found = verdicts(pool, "deep", "a")
    assert found[0].score is None
    assert "RecursionError" in (found[0].note or "")
    assert found[1] == Verdict(1.0)


def test_output_does_not_get_between_the_answers(pool):
    assert verdicts(pool, "shout", "a", "shout", "ab") == [Verdict(1.0), Verdict(1.0), Verdict(1.0), Verdict(2.0)]


@pytest.mark.parametrize("garbage", ["x", "\0", "\xff", '{"score":1,"note":null}'])
def test_a_worker_that_sends_garbage_is_replaced(pool, garbage):
    found = verdicts(pool, f"scribble {garbage}", "abc", "ab")
    assert found[1:] == [Verdict(3.0), Verdict(2.0)]
    assert found[0].score is None
    assert found[0].note


@pytest.mark.parametrize(
    "answer",
    ["[]", "null", '{"ready": true}', '{"score": 1e999, "note": null}', f'{{"score": {"9" * 400}, "note": null}}',
     '{"score": true, "note": null}', '{"score": 1.0}', '{"score": 1.0, "note": 5}', "[" * 9999, "\xff"],
)  # fmt: skip
def test_a_forged_answer_that_is_none_is_not_taken(pool, answer):
    found = verdicts(pool, f"forge {answer}", "abc")
    assert found == [Verdict(None, "its worker died (SIGKILL)", fatal=True), Verdict(3.0)]


def test_a_worker_that_dies_of_something_else_gets_a_second_try(pool, tmp_path):
    assert verdicts(pool, f"crash_once {tmp_path / 'seen'}") == [Verdict(0.5)]


def test_children_of_a_killed_worker_die_with_it(pool, tmp_path):
    notes = tmp_path / "alive"
    assert verdicts(pool, f"spawn {notes}")[0].note == "took longer than 1 s"
    time.sleep(0.2)
    size = notes.stat().st_size
    assert size > 0
    time.sleep(0.3)
    assert notes.stat().st_size == size


def test_all_hanging_take_their_time_divided_by_the_workers(pool):
    start = time.monotonic()
    assert {verdict.note for verdict in verdicts(pool, *["hang"] * 4)} == {"took longer than 1 s"}
    assert 2.0 <= time.monotonic() - start < 5.0


def test_a_batch_has_a_time_of_its_own():
    workers = Workers(MAKE, count=1, limits=WorkerLimits(seconds=30, batch_seconds=1.5))
    start = time.monotonic()
    found = verdicts(workers, "a", "hang", "ab")
    assert time.monotonic() - start < 3
    assert found[0] == Verdict(1.0)
    assert {verdict.note for verdict in found[1:]} == {"was not judged: the batch took longer than 1.5 s"}
    workers.close()


def test_columns_travel_and_those_that_can_not_cost_their_response(pool):
    found = pool.judge(["column a"] * 3, [{"a": 0.25}, {"a": threading.Lock()}, {"a": 0.75, "b": [1, {"c": b"d"}]}])
    assert found[0] == Verdict(0.25)
    assert found[1].score is None
    assert "columns that can not be sent" in (found[1].note or "")
    assert found[2] == Verdict(0.75)


def test_a_megabyte_goes_through(pool):
    assert verdicts(pool, "x" * (1 << 20), "a", columns={"big": "y" * (1 << 21)}) == [Verdict(1 << 20), Verdict(1.0)]


def test_workers_are_kept_between_batches_and_do_not_hold_torch(pool):
    workers = Workers(MAKE, {"factor": 2.0}, count=1, limits=LIMITS)
    assert verdicts(workers, "abc") == [Verdict(6.0)]
    first, second = verdicts(workers, "pid"), verdicts(workers, "pid")
    assert first == second
    assert first[0].score != os.getpid()
    assert verdicts(workers, "modules torch", "modules numpy") == [Verdict(0.0), Verdict(0.0)]
    workers.close()
    assert verdicts(workers, "pid") != first
    workers.close()


def test_secrets_of_the_environment_stay_outside(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "secret")
    workers = Workers(MAKE, count=1, limits=LIMITS)
    assert verdicts(workers, "variable SOME_TOKEN", "variable PATH") == [Verdict(0.0), Verdict(1.0)]
    workers.close()


@pytest.mark.skipif(not (seccomp.available() and kernel.landlock_version()), reason="needs seccomp and Landlock")
def test_a_confined_worker_reads_but_changes_and_reaches_nothing(tmp_path):
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "does.py").write_text(
        "class Does:\n"
        "    name, version = 'does', '1'\n"
        "    def score(self, text, columns):\n"
        "        try: exec(text, {'os': __import__('os'), 'socket': __import__('socket')})\n"
        "        except OSError: return 0.0\n"
        "        return 1.0\n"
    )
    kept, new = repr(str(tmp_path / "kept")), repr(str(tmp_path / "new"))
    acts = [
        f"open({kept}, 'w')", f"open({new}, 'w')", f"os.remove({kept})",
        "socket.socket()", "os.fork() or os._exit(0)", "os.kill(os.getppid(), 0)",
    ]  # fmt: skip
    harmless = [f"open({kept}).read()", "open('/dev/null', 'w').write('x')", "import colorsys"]
    spec = f"{tmp_path / 'does.py'}:Does"
    confined = Isolated(spec, count=1, limits=WorkerLimits(seconds=5), confined=True)
    assert [v.score for v in confined.judge([*acts, *harmless], [{}] * 9)] == [0.0] * 6 + [1.0] * 3
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "kept").read_text() == "kept"
    confined.close()
    free = Isolated(spec, count=1, limits=WorkerLimits(seconds=5))
    assert [v.score for v in free.judge([acts[1], acts[3], acts[5]], [{}] * 3)] == [1.0] * 3  # the acts do succeed
    free.close()


def test_a_start_takes_little():
    workers = Workers(MAKE, count=1, limits=LIMITS)
    start = time.monotonic()
    verdicts(workers, "a")
    assert time.monotonic() - start < 5
    workers.close()


@pytest.mark.parametrize("make", ["tests.verifiers.hazards:Missing", "nowhere:Hazard"])
def test_workers_that_do_not_start_leave_the_batch_unjudged(make):
    workers = Workers(make, count=2, limits=LIMITS)
    found = verdicts(workers, "a", "b")
    assert [verdict.score for verdict in found] == [None, None]
    assert "no worker starts: " in (found[0].note or "")
    assert ("Missing" if "Missing" in make else "nowhere") in (found[0].note or "")


def test_a_verifier_that_does_not_fit_into_memory_does_not_start():
    workers = Workers(MAKE, {"ballast": 1 << 30}, count=1, limits=LIMITS)
    assert verdicts(workers, "a") == [Verdict(None, "was not judged: no worker starts: MemoryError")]


def test_threads_share_the_workers(pool):
    found: dict[int, list[Verdict]] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: verdicts(pool, "x" * n, "y" * (n + 1))})) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [Verdict(float(n)), Verdict(float(n + 1))] for n in range(8)}


def test_an_interruption_ends_what_was_at_work(pool):
    with pytest.raises(TooSlow):
        within(0.3, lambda: verdicts(pool, "sleep 0.9", "sleep 0.9"))
    assert pool.workers == []
    assert verdicts(pool, "abc") == [Verdict(3.0)]


def test_a_fork_has_workers_of_its_own(pool):
    before = verdicts(pool, "pid")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, pickle.dumps(verdicts(pool, "pid")))
            pool.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert pickle.loads(os.read(reader, 10_000))[0].score not in (None, before[0].score)
    assert verdicts(pool, "pid", "pid")[0].score is not None


def test_no_process_outlives_the_run(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        "import os, signal, sys\n"
        "from vantage.verifiers.workers import Workers, WorkerLimits\n"
        f"workers = Workers({MAKE!r}, count=2, limits=WorkerLimits(seconds=1))\n"
        "print(*(int(v.score) for v in workers.judge(['pid'] * 8, [{}] * 8)), flush=True)\n"
        "if sys.argv[1] == 'kill': os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for ending in ("exit", "kill"):
        path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
        done = subprocess.run(
            [sys.executable, str(script), ending], capture_output=True, env={**os.environ, "PYTHONPATH": path}
        )
        pids = {int(word) for word in done.stdout.split()}
        assert pids, done.stderr.decode()
        deadline = time.monotonic() + 5
        while any(Path(f"/proc/{pid}/cmdline").exists() and _is_worker(pid) for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def _is_worker(pid: int) -> bool:
    try:
        return b"verifiers.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_hanging_worker_ends_even_if_the_run_is_killed(tmp_path):
    script = tmp_path / "run.py"
    script.write_text(
        "from vantage.verifiers.workers import Workers, WorkerLimits\n"
        f"Workers({MAKE!r}, count=1, limits=WorkerLimits(seconds=0.8)).judge(['backtrack'], [{{}}])\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    run = subprocess.Popen([sys.executable, str(script)], env={**os.environ, "PYTHONPATH": path})
    children: list[int] = []
    deadline = time.monotonic() + 10
    while not children and time.monotonic() < deadline:
        text = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text()
        children = [int(word) for word in text.split()]
        time.sleep(0.02)
    time.sleep(0.5)  # by now the call hangs, or is about to
    run.kill()
    run.wait()
    deadline = time.monotonic() + 10
    while any(_is_worker(pid) for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert children


# Any verifier, isolated, and as a reward function.


def test_isolated_verifier_has_name_version_and_scores():
    isolated = Isolated(MAKE, {"factor": 0.5}, columns=("a",), count=1, limits=LIMITS)
    assert (isolated.name, isolated.version) == ("hazard", "1")
    assert isolated.score("ab", {}) == 1.0
    assert isolated.score_many(["hang", "abcd"], [{}, {}]) == [None, 2.0]
    assert isolated.score("columns", {"a": 1, "b": 2}) == 1.0
    isolated.close()


def test_isolated_verifier_from_a_file(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "class Mine:\n    name, version = 'mine', '3'\n    def score(self, text, columns): return float(text == columns['a'])\n"
    )
    monkeypatch.chdir(tmp_path)
    isolated = Isolated("mine.py:Mine", count=1, limits=LIMITS)
    monkeypatch.chdir("/")
    assert isolated.score_many(["x", "y"], [{"a": "x"}] * 2) == [1.0, 0.0]
    isolated.close()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        ("hazard", {}, "is neither MODULE:NAME nor FILE.py:NAME"),
        ("tests.verifiers.hazards:Missing", {}, "gives no verifier"),
        (MAKE, {"nonsense": 1}, "gives no verifier"),
        ("missing.py:Mine", {}, "there is no file"),
    ],
)
def test_what_is_no_verifier_is_said_at_once(make, options, message):
    with pytest.raises(UserError, match=message):
        Isolated(make, options)


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"limits": {"seconds": 0}}, {"limits": {"memory_bytes": -1}}, {"options": {"a": lambda: 0}}]
)
def test_wrong_settings_are_said_at_once(wrong):
    with pytest.raises(UserError, match="verifier workers: "):
        Workers(MAKE, wrong.get("options"), count=wrong.get("count"), limits=WorkerLimits(**wrong.get("limits", {})))


def test_number_of_workers_is_shared_among_the_processes_of_a_launcher(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert default_count() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert default_count() == 1
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert default_count() == 6


def test_as_a_reward_function_failures_are_unscorable_and_noted():
    isolated = Isolated(MAKE, count=1, limits=LIMITS)
    rewards = RewardSet([reward_function(isolated), lambda completions, **_: [10.0] * len(completions)])(
        prompts=["p"] * 4,
        completions=["ab", "fail x", "return None", "column a"],
        completion_ids=[[1]] * 4,
        columns={"a": [0.5] * 4},
    )
    assert rewards.total[0] == 12.0
    assert math.isnan(rewards.total[1])  # a part of the reward is missing
    assert rewards.total[2:] == [10.0, 10.5]  # "does not apply" leaves the other function's
    assert rewards.extras["hazard_note"] == [None, "raised ValueError: x", None, None]
    assert rewards.metrics["hazard_notes"] == 0.25
    isolated.close()


def test_a_plain_verifier_is_judged_one_by_one_and_may_raise():
    found = judge(Hazard(), ["ab", "fail x", "return True"], [{}, {}, {}])
    assert found == [Verdict(2.0), Verdict(None, "raised ValueError: x"), Verdict(1.0)]
    with pytest.raises(ValueError, match="2 responses for 1 rows"):
        judge(Hazard(), ["a", "b"], [{}])
