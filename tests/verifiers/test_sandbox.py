"""Hostile programs end in time, with the machine unharmed, at every level that this machine has."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vantage.verifiers import levels, sandbox
from vantage.verifiers.inside import kernel, seccomp
from vantage.verifiers.levels import Level
from vantage.verifiers.sandbox import Limits, Outcome, SandboxError, run
from vantage.verifiers.supervise import remove, within

MB = 1 << 20
SMALL = Limits(
    wall_s=5,
    cpu_s=4,
    memory_bytes=256 * MB,
    file_bytes=2 * MB,
    scratch_bytes=4 * MB,
    open_files=32,
    output_bytes=20_000,
)


def limits(**changes: float) -> Limits:
    return Limits(**{**{name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__}, **changes})


@pytest.fixture(autouse=True)
def nothing_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No scratch folder outlives its program."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o055)  # root hands programs to another user
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield
    until = time.monotonic() + 20
    while os.listdir(folder) and time.monotonic() < until:
        time.sleep(0.01)
    assert os.listdir(folder) == []


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours with a secret in its environment."""
    with subprocess.Popen(["sleep", "60"], env={"SECRET": "hunter2-secret"}) as process:
        yield process
        process.kill()


def took(found: Outcome, reason: str) -> None:
    assert found.reason == reason, found
    assert not found.ok
    assert found.returncode is None or reason == "cpu"


# What a well-behaved program finds.


def test_program_reads_input_and_files_and_writes_output(at: Level) -> None:
    program = "print(input()[::-1], open('data.txt').read(), open('b').read()); open('new', 'w').write('x')"
    found = run(program, "abc\n", SMALL, {"data.txt": "näh", "b": b"raw"}, at=at)
    assert found == Outcome("cba näh raw\n", "", 0, "exit")


def test_exit_status_signal_and_traceback_are_reported(at: Level) -> None:
    assert run("raise SystemExit(3)", at=at).returncode == 3
    assert run("import os; os.abort()", at=at).returncode == -signal.SIGABRT
    found = run("1/0", at=at)
    assert (found.returncode, found.reason, found.ok) == (1, "exit", False)
    assert found.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_every_run_has_a_scratch_folder_of_its_own(at: Level) -> None:
    # The folder may also hold the mount point of an interpreter that lies below the host's /tmp.
    program = (
        "import os; print('program.py' in os.listdir('.'), 'left' in os.listdir('.'))\n"
        "open('left', 'w').write('x'); print(os.path.exists('left'))"
    )
    assert [run(program, at=at).stdout for _ in range(2)] == ["True False\nTrue\n"] * 2


def test_threads_with_large_stacks_and_deep_recursion_work(at: Level) -> None:
    program = """
import sys, threading
sys.setrecursionlimit(10**6)
threading.stack_size(128 * 2**20)
def deep(n): return 0 if n == 0 else 1 + deep(n - 1)
t = threading.Thread(target=lambda: print(deep(50000)))
t.start()
t.join()
"""
    assert run(program, at=at).stdout == "50000\n"


def test_bytes_that_are_no_text_are_replaced(at: Level) -> None:
    assert run(r"import os; os.write(1, b'a\xff\xfeb')", at=at).stdout == "a\ufffd\ufffdb"


def test_program_outlives_closing_its_own_pipes(at: Level) -> None:
    found = run("import os, time; os.write(1, b'x'); os.closerange(0, 100); time.sleep(0.2); os._exit(7)", at=at)
    assert (found.stdout, found.returncode) == ("x", 7)


# Limits.


@pytest.mark.parametrize(
    "program",
    ["import os, time; os.closerange(0, 100); time.sleep(60)",
     "import signal, time\nfor n in range(1, 32):\n    try: signal.signal(n, lambda *a: None)\n    except OSError: pass\n"
     "while True: time.sleep(1)",
     "import sys\nsys.stdin.read()\nwhile True:\n    try: exit(0)\n    except BaseException: pass"],
)  # fmt: skip
def test_endless_program_is_ended_by_the_clock(program: str, at: Level) -> None:
    start = time.monotonic()
    took(run(program, limits=limits(wall_s=0.4), at=at), "wall")
    assert time.monotonic() - start < 3


def test_processor_time_is_limited() -> None:
    took(run("while True: pass", limits=limits(cpu_s=1, wall_s=20), at=sandbox.working()[-1]), "cpu")


@pytest.mark.parametrize(
    "program", ["bytearray(1 << 40)", "x = []\nwhile True: x.append(bytearray(10**7))", "x = 'a'\nwhile True: x += x"]
)
def test_memory_is_limited(program: str, at: Level) -> None:
    found = run(program, limits=SMALL, at=at)
    assert found.returncode == 1
    assert "MemoryError" in found.stderr


@pytest.mark.parametrize("stream", ["1", "2"])
def test_output_is_cut_and_ends_the_program(stream: str, at: Level) -> None:
    found = run(f"import os\nwhile True: os.write({stream}, b'x' * 5000)", limits=SMALL, at=at)
    took(found, "output")
    assert found.stdout + found.stderr == "x" * 20_000


def test_output_just_within_the_limit_is_whole(at: Level) -> None:
    found = run("print('x' * 19999)", limits=SMALL, at=at)
    assert (found.ok, len(found.stdout)) == (True, 20_000)


@pytest.mark.parametrize("processes", [1, 6])
def test_fork_bomb_is_bounded(processes: int, at: Level) -> None:
    if processes > 1 and os.geteuid() == 0 and not at.change_user:
        pytest.skip("the kernel does not count root's processes")
    if processes > 1 and not at.change_user and at.name == "rlimits":
        pytest.skip("other tests' processes are counted too")
    program = "import os\nwhile True:\n    os.fork()"
    start = time.monotonic()
    found = run(program, limits=limits(processes=processes, wall_s=0.5), at=at)
    assert not found.ok
    assert time.monotonic() - start < 4
    if processes == 1:
        assert found.returncode == 1
        assert "PermissionError" in found.stderr or "BlockingIOError" in found.stderr


def test_threads_are_bounded(at: Level) -> None:
    program = """
import threading, time
threading.stack_size(64 * 1024)
started = 0
try:
    for started in range(100_000): threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
except RuntimeError:
    print(started, flush=True)
    import os; os._exit(0)
"""
    found = run(program, limits=limits(wall_s=10), at=at)
    assert found.ok
    # Where threads are not counted memory bounds them.
    counted = levels._tasks(at, 1) is not None
    assert int(found.stdout) < (1200 if counted else 4000)


@pytest.mark.parametrize(
    "program",
    ["open('x', 'wb').write(bytes(3 << 20))",
     "for i in range(100):\n    open(f'{i}', 'wb').write(bytes(1 << 20))",
     "i = 0\nwhile True:\n    i += 1; open(f'{i}', 'w').close()",
     "import os\nwhile True:\n    os.mkdir('d'); os.chdir('d')",
     "import os, time\nos.mkdir('d'); os.chmod('d', 0); os.chmod('.', 0); time.sleep(0.3)\nraise SystemExit(1)"],
)  # fmt: skip
def test_disk_is_limited_and_cleaned(program: str, at: Level) -> None:
    found = run(program, limits=limits(wall_s=2), at=at)
    assert not found.ok
    if "range(100)" in program:
        assert found.reason in ("disk", "exit")


def test_open_files_are_limited(at: Level) -> None:
    found = run("x = [open('program.py') for _ in range(100)]", limits=SMALL, at=at)
    assert "Too many open files" in found.stderr


def test_limits_can_not_be_raised(at: Level) -> None:
    program = """
import resource
for name in ("AS", "CPU", "FSIZE", "NOFILE"):
    try:
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (resource.RLIM_INFINITY,) * 2)
        print("raised", name)
    except (ValueError, OSError): pass
"""
    found = run(program, limits=SMALL, at=at)
    assert found == Outcome("", "", 0, "exit")


# Harm to others.


def test_network_is_out_of_reach(at: Level) -> None:
    if any("network" in gap for gap in at.unprotected):
        pytest.skip("this level does not protect the network here")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        port = listener.getsockname()[1]
        program = f"import socket; s = socket.create_connection(('127.0.0.1', {port}), 2); print('connected')"
        found = run(program, limits=SMALL, at=at)
        with pytest.raises(TimeoutError):
            listener.accept()
    assert found.stdout == ""
    assert "Error" in found.stderr


def test_no_socket_of_any_family_is_made(at: Level) -> None:
    if not at.seccomp:
        pytest.skip("needs the seccomp filter")
    program = """
import socket
for family in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET", "AF_VSOCK"):
    try: socket.socket(getattr(socket, family)); print(family)
    except PermissionError: pass
print([len(socket.socketpair())])
"""
    assert run(program, limits=SMALL, at=at).stdout == "[2]\n"


def test_secrets_of_the_environment_are_not_there(
    at: Level, victim: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2-secret")
    program = """
import glob, os
print(dict(os.environ))
for pid in [*glob.glob('/proc/[0-9]*'), '/proc/self', '/proc/%d' % os.getppid(), '/proc/VICTIM']:
    try: print(open(pid + '/environ', 'rb').read())
    except OSError: pass
"""
    found = run(program.replace("VICTIM", str(victim.pid)), limits=limits(output_bytes=MB), at=at)
    assert found.ok
    if "/proc" in found.stdout or not any("read" in gap for gap in at.unprotected):
        assert "hunter2" not in found.stdout
    assert set(re.findall(r"'([A-Z_]+)'", found.stdout.splitlines()[0])) <= {
        "HOME", "TMPDIR", "LANG", "PATH", "PWD", "LC_CTYPE", "LD_LIBRARY_PATH",
        "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
    }  # fmt: skip


def test_nothing_outside_the_scratch_folder_is_written_or_read(at: Level, tmp_path: Path) -> None:
    if any("read" in gap for gap in at.unprotected):
        pytest.skip("this level does not protect files here")
    tmp_path.chmod(0o777)
    secret = tmp_path / "expected.txt"
    secret.write_text("hunter2")
    secret.chmod(0o666)
    program = f"""
import os, site, sys
for path in [{str(tmp_path / "new")!r}, {str(secret)!r}, '/etc/vantage', '/vantage', sys.prefix + '/vantage',
             os.path.dirname(os.__file__) + '/vantage', '/usr/vantage', '/dev/shm/vantage', '/var/tmp/vantage']:
    try: open(path, 'w').write('x'); print('wrote', path)
    except OSError: pass
for path in [{str(secret)!r}, '/etc/passwd', '/etc/shadow']:
    try: print(open(path).read())
    except OSError: pass
for action in (os.remove, os.rmdir, lambda path: os.rename(path, 'here'), lambda path: os.link(path, 'here')):
    try: action({str(secret)!r}); print('moved')
    except OSError: pass
"""
    assert run(program, limits=SMALL, at=at) == Outcome("", "", 0, "exit")
    assert not (tmp_path / "new").exists()
    assert secret.read_text() == "hunter2"


def test_no_process_outside_can_be_signalled_or_slowed(at: Level, victim: subprocess.Popen[bytes]) -> None:
    if any("signal" in gap for gap in at.unprotected):
        pytest.skip("this level does not protect processes here")
    program = f"""
import os, resource, signal
# Process 1 of its own world is all that it may find as its parent.
for pid in ({victim.pid}, {os.getpid()}, os.getppid()):
    for attempt in (lambda: os.kill(pid, signal.SIGTERM), lambda: os.setpriority(os.PRIO_PROCESS, pid, 19),
                    lambda: resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0)), lambda: os.sched_setaffinity(pid, [0])):
        try: attempt(); print('done to', pid)
        except OSError: pass
"""
    before = os.getpriority(os.PRIO_PROCESS, victim.pid)
    assert run(program, limits=SMALL, at=at) == Outcome("", "", 0, "exit")
    assert victim.poll() is None
    assert os.getpriority(os.PRIO_PROCESS, victim.pid) == before


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_daemon_does_not_outlive_its_program(at: Level) -> None:
    if any("leave processes behind" in gap for gap in at.unprotected):
        pytest.skip("this level can not hold daemons here")
    token = f"vantage-daemon-{os.urandom(8).hex()}"
    program = f"""
import os, sys, time
if os.fork() == 0:
    for attempt in (os.setsid, os.setpgrp):
        try: attempt()
        except OSError: pass
    if os.fork() == 0:
        os.execv(sys.executable, [sys.executable, '-I', '-S', '-c', 'import time; time.sleep(60)', {token!r}])
    os._exit(0)
time.sleep(0.3)
print('started')
"""
    found = run(program, limits=limits(processes=8), at=at)
    assert found.stdout == "started\n", found
    time.sleep(0.1)
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not any(token.encode() in line for line in lines)


def test_sandbox_is_not_left_by_new_namespaces_or_tracing(at: Level) -> None:
    if not at.seccomp:
        pytest.skip("needs the seccomp filter")
    program = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for name, call in {
    "unshare": lambda: libc.unshare(0x10000000), "mount": lambda: libc.mount(b"none", b"/", b"tmpfs", 0, None),
    "ptrace": lambda: libc.ptrace(16, 1, 0, 0), "chroot": lambda: libc.chroot(b"."),
    "memfd": lambda: libc.memfd_create(b"x", 0),
    "shm": lambda: libc.shmget(0, 4096, 0o1600), "setsid": libc.setsid, "clone3": lambda: libc.syscall(435, 0, 0),
}.items():
    if call() != -1: print("could", name)
"""
    assert run(program, limits=SMALL, at=at) == Outcome("", "", 0, "exit")


@pytest.mark.parametrize(
    "program",
    ["\0" * 1000, bytes(range(256)).decode("latin-1") * 50, "\udcff\ud800 print(1)", "(" * 100_000,
     "x = " + "-" * 200_000 + "1", ""],
)  # fmt: skip
def test_garbage_is_no_program(program: str, at: Level) -> None:
    found = run(program, limits=SMALL, at=at)
    assert found.stdout == ""
    # The traceback of a line of a hundred thousand characters may itself be too much output.
    assert found.reason == "exit" or (found.reason == "output" and len(program) >= 100_000)
    assert not found.ok or program.strip("\0") == ""  # some interpreters take a file of zeros for an empty one


# The sandbox itself.


def test_chosen_level_is_the_first_that_works_and_says_what_it_leaves_open() -> None:
    chosen = sandbox.level()
    assert chosen == sandbox.working()[0]
    assert chosen.name in chosen.describe()
    assert all(gap in chosen.describe() for gap in chosen.unprotected)


def test_weakest_level_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weakest = sandbox.working()[-1]
    monkeypatch.setattr(levels, "candidates", lambda: [weakest])
    sandbox._best.cache_clear()
    try:
        with pytest.warns(UserWarning, match="without namespaces") as caught:
            assert [run(f"print({number})").stdout for number in (1, 2)] == ["1\n", "2\n"]
        assert len(caught) == 1
    finally:
        sandbox._best.cache_clear()


def test_level_that_does_not_work_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    weakest = sandbox.working()[-1]
    broken = Level("bubblewrap")
    monkeypatch.setattr(levels, "bubblewrap", lambda: "/bin/false")
    monkeypatch.setattr(levels, "candidates", lambda: [broken, weakest])
    with pytest.raises(SandboxError, match="did not start"):
        run("print(1)", at=broken)
    assert sandbox.working() == [weakest]


def test_gaps_are_named_where_the_kernel_has_nothing_better() -> None:
    bare = " ".join(Level("rlimits", seccomp=False).unprotected)
    assert all(word in bare for word in ("files", "network", "processes behind", "signal", "disk"))
    assert Level("namespaces").unprotected == ()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/b", "", "..", "a\0b"])
def test_files_need_plain_names(name: str) -> None:
    with pytest.raises(SandboxError, match="plain names"):
        run("", files={name: "x"})


def test_failure_to_start_is_an_error_of_the_sandbox_and_leaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    at = sandbox.working()[-1]
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(SandboxError, match="no process could be started"):
        run("print(1)", at=at)
    assert len(os.listdir("/dev/fd")) == before


def test_no_descriptor_is_left_open(at: Level) -> None:
    run("print(1)", at=at)
    before = len(os.listdir("/dev/fd"))
    run("print(1)", at=at)
    run("while True: print(1)", limits=SMALL, at=at)
    assert len(os.listdir("/dev/fd")) == before


def test_descriptors_of_ours_do_not_reach_the_program(at: Level, tmp_path: Path) -> None:
    with open(tmp_path / "open", "w") as file:
        os.set_inheritable(file.fileno(), True)
        program = """
import os
for number in range(3, 200):
    try: os.fstat(number); print(number)
    except OSError: pass
"""
        assert run(program, at=at).stdout == ""


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_program_ends_when_the_trainer_is_killed(tmp_path: Path) -> None:
    token = f"vantage-orphan-{os.urandom(8).hex()}"
    code = f"from vantage.verifiers.sandbox import run; run('import time; time.sleep(60)', {token!r}, files={{{token!r}: ''}})"
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}) as trainer:
        until = time.monotonic() + 15
        while not (children := _descendants(trainer.pid)) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.7)  # probes of the level come first; let it reach the program
        children = _descendants(trainer.pid)
        assert children
        trainer.kill()
    until = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def _descendants(pid: int) -> list[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
    found = [child for child, parent in parents.items() if parent == pid]
    return found + [grandchild for child in found for grandchild in _descendants_in(parents, child)]


def _descendants_in(parents: dict[int, int], pid: int) -> list[int]:
    found = [child for child, parent in parents.items() if parent == pid]
    return found + [grandchild for child in found for grandchild in _descendants_in(parents, child)]


def test_folder_with_hostile_contents_is_removed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    here = os.getcwd()
    try:
        os.chdir(top)
        for _ in range(300):  # longer than a path can be
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
    finally:
        os.chdir(here)
    (top / "link").symlink_to(tmp_path)
    (top / "closed").mkdir(mode=0)
    assert not within(str(top), 1 << 40)
    remove(str(top))
    assert not top.exists()
    assert tmp_path.exists()


def test_filter_knows_both_architectures_and_lets_reading_and_writing_through() -> None:
    """The filter's program is executed here by hand, call by call."""
    for machine in seccomp.MACHINES.values():
        program = seccomp.build(machine, own=77, processes=False)
        assert len(program) // 8 < 4096  # the kernel's limit
        for number in machine.denied.values():
            assert _judged(program, machine.audit, number) == "EPERM"
        read = 0 if machine.foreign else 63
        assert _judged(program, machine.audit, read) == "allow"
        assert _judged(program, machine.audit, machine.clone3) == "ENOSYS"
        assert _judged(program, machine.audit, machine.clone, 0x3D0F00) == "allow"  # a thread, as the C library asks
        assert _judged(program, machine.audit, machine.clone, signal.SIGCHLD) == "EPERM"
        assert _judged(seccomp.build(machine, 77, True), machine.audit, machine.clone, signal.SIGCHLD) == "allow"
        assert [_judged(program, machine.audit, machine.tgkill, pid) for pid in (77, 78)] == ["allow", "EPERM"]
        assert [_judged(program, machine.audit, machine.prlimit, pid) for pid in (0, 78)] == ["allow", "EPERM"]
        assert _judged(program, 0x40000003, read) == "kill"  # calls of 32-bit programs


def _judged(program: bytes, architecture: int, number: int, first: int = 0) -> str:
    import errno
    import struct

    code = list(struct.iter_unpack("=HBBI", program))
    word, place = 0, 0
    while True:
        what, yes, no, operand = code[place]
        place += 1
        if what == seccomp.LOAD:
            word = {0: number, 4: architecture, 16: first}[operand]
        elif what == seccomp.RETURN:
            names = {seccomp.ALLOW: "allow", seccomp.KILL: "kill"}
            return names.get(operand) or errno.errorcode[operand - seccomp.FAIL]
        else:
            holds = {seccomp.EQUAL: word == operand, seccomp.AT_LEAST: word >= operand, seccomp.BITS: word & operand}[
                what
            ]
            place += yes if holds else no


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock is Linux's")
def test_landlock_version_is_reported_not_assumed() -> None:
    assert kernel.landlock_version() >= 0
    assert all(level.landlock == kernel.landlock_version() for level in levels.candidates() if level.name == "rlimits")
