"""How well can this machine lock up a program, and what is the command for it?

Three levels, best first:

- **bubblewrap**: `bwrap` makes namespaces and a root folder of its own.
- **namespaces**: the same made by system calls, for root with CAP_SYS_ADMIN (and then as another user), else in a user
  namespace.
- **rlimits**: resource limits, with whatever the kernel gives an ordinary process beside them: Landlock (files), a seccomp
  filter (network, processes, signals), and for root another user. This is what containers allow as a rule.

The seccomp filter is put on at every level where the architecture is known.
"""

from __future__ import annotations

import os
import platform
import shutil
import site
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vantage.verifiers.inside import kernel, seccomp
from vantage.verifiers.supervise import MOST_FILES

Name = Literal["bubblewrap", "namespaces", "rlimits"]
INSIDE = 1000
"""User and group of the program in a user namespace."""
SPARE_USERS = range(61184, 65520)
"""Users that the system hands out for a short time only; as root a program runs as one of them."""
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store")
SETTINGS = ("/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
THREADS = 64
"""Threads that a program may have beside its processes, where they are counted."""
STACK_BYTES = 64 << 20


@dataclass(frozen=True)
class Level:
    """A way to lock up a program."""

    name: Name
    seccomp: bool = True
    change_user: bool = False
    """Root hands the program to another user."""
    user_namespace: bool = True
    limit_tasks: bool = True
    landlock: int = 0
    """Version of Landlock, 0 without."""

    @property
    def unprotected(self) -> tuple[str, ...]:
        """What this level does not keep a program from, in words."""
        gaps = []
        if self.name == "rlimits":
            if not self.landlock:
                gaps.append("it can read, and write, what its user can" + ("" if self.change_user else ": your files"))
            if not self.seccomp:
                if self.landlock < 4:
                    gaps.append("it can use the network")
                gaps.append("it can leave processes behind")
                if not self.change_user and self.landlock < 6:
                    gaps.append("it can signal your processes")
        if self.name != "namespaces":
            gaps.append("disk use is watched instead of limited")
        if not self.limit_tasks and not self.seccomp:
            gaps.append("processes are not counted")
        return tuple(gaps)

    def describe(self) -> str:
        """The level and its parts on one line, for `vantage doctor`."""
        parts = [
            *(["seccomp"] if self.seccomp else []),
            *([f"Landlock {self.landlock}"] if self.landlock else []),
            *(["another user"] if self.change_user else []),
        ]
        text = " + ".join([self.name, *parts])
        return text + (f"; not protected: {', '.join(self.unprotected)}" if self.unprotected else "")


def candidates() -> list[Level]:
    """Levels worth trying here, best first. The last one needs nothing but resource limits."""
    if sys.platform != "linux":
        return [Level("rlimits", seccomp=False)]
    root, known = os.geteuid() == 0, seccomp.available()
    found = [Level("bubblewrap", known)] if bubblewrap() else []
    if root:
        found.append(Level("namespaces", known, change_user=True, user_namespace=False))
    found.append(Level("namespaces", known))
    version = kernel.landlock_version()
    for filtered in (True, False) if known else (False,):
        for change in (True, False) if root else (False,):
            found.append(Level("rlimits", filtered, change, landlock=version))
        # Where /proc hides other processes of this user they can not be counted, and threads would fail.
        found.append(Level("rlimits", filtered, landlock=version, limit_tasks=False))
    return found


def bubblewrap() -> str | None:
    """Where `bwrap` is."""
    return shutil.which("bwrap")


def command(level: Level, folder: str | None, scratch: str) -> list[str]:
    """What stands before the interpreter on the command line; `folder` of ours is shown to the program as `scratch`."""
    if level.name != "bubblewrap":
        return []
    words = [bubblewrap() or "bwrap", "--unshare-all", "--unshare-user", "--die-with-parent", "--cap-drop", "ALL"]
    words += ["--uid", str(INSIDE), "--gid", str(INSIDE), "--hostname", "sandbox"]
    # Not a file system in memory: bubblewrap can not limit the number of files there.
    words += ["--bind", str(folder), scratch]
    for path in shown():
        words += ["--dev-bind" if path in DEVICES else "--ro-bind", os.path.realpath(path), path]
    for path, target in links().items():
        words += ["--symlink", target, path]
    return [*words, "--remount-ro", "/", "--chdir", "/", "--"]


def job(level: Level, scratch: str, limits: dict[str, Any]) -> dict[str, Any]:
    """What `inside.stage` needs to know about the level; the caller adds files, argv, keep and status."""
    spare = SPARE_USERS[int.from_bytes(os.urandom(4)) % len(SPARE_USERS)]
    return {
        "mode": "spaces" if level.name == "namespaces" else "plain",
        "user_namespace": level.user_namespace,
        "change_user": level.change_user,
        "uid": spare if level.change_user else INSIDE,
        "shown": shown(),
        "links": links(),
        "scratch": scratch,
        "limits": {**limits, "stack_bytes": STACK_BYTES, "files": MOST_FILES},
        "tasks": _tasks(level, limits["processes"]),
        "landlock": level.name == "rlimits" and level.landlock > 0,
        "seccomp": level.seccomp,
    }


def environment(scratch: str) -> dict[str, str]:
    """All that a program finds in its environment: nothing from ours but where the linker looks."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH") if name in os.environ}
    # Libraries that start a thread for every core would hit the limits.
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {"HOME": scratch, "TMPDIR": scratch, "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin", **single, **kept}


def shown() -> list[str]:
    """Absolute paths that a program may read: the interpreter, its packages, the system's libraries, four devices."""
    folders = [path for path in SYSTEM if os.path.isdir(path) and not os.path.islink(path)]
    folders += [sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages()]
    folders += [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += _executable_folders()
    folders += [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
    wanted = sorted({os.path.abspath(path) for path in folders if os.path.isdir(path)} - {"/"})
    # A folder within another one that is shown needs no place of its own. Sorted: the outer one comes first.
    kept: list[str] = []
    for path in wanted:
        if not any(path.startswith(outer + "/") for outer in kept):
            kept.append(path)
    return [*kept, *(path for path in (*SETTINGS, *DEVICES) if os.path.exists(path))]


def links() -> dict[str, str]:
    """Links at the root, such as /bin → usr/bin."""
    return {path: os.readlink(path) for path in SYSTEM if os.path.islink(path)}


def _executable_folders() -> list[str]:
    """Folders on the way from `sys.executable` over its symbolic links to the file itself."""
    found, path = [], sys.executable
    for _ in range(10):
        found.append(os.path.dirname(path))
        if not os.path.islink(path):
            break
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    return found


def _tasks(level: Level, processes: int) -> int | None:
    """Limit on the user's processes and threads, None for no limit.

    The kernel counts all tasks of a user, those outside of the sandbox too, but for user namespaces since Linux 5.14.
    It does not hold root to the limit.
    """
    if not level.limit_tasks or (os.geteuid() == 0 and not level.change_user):
        return None
    own = processes + THREADS + 3  # three that wait: the stage and process 1
    spaced = level.name != "rlimits" and level.user_namespace and sys.platform == "linux" and _release() >= (5, 14)
    return own if level.change_user or spaced else own + _tasks_of_this_user()


def _release() -> tuple[int, ...]:
    parts: Sequence[str] = platform.release().split("-")[0].split(".")[:2]
    return tuple(int(part) for part in parts if part.isdigit())


def _tasks_of_this_user() -> int:
    try:
        processes = [entry.name for entry in os.scandir("/proc") if entry.name.isdigit()]
    except OSError:
        return 1000  # macOS
    count, user = 0, os.geteuid()
    for pid in processes:
        try:
            if os.stat(f"/proc/{pid}").st_uid == user:
                count += len(os.listdir(f"/proc/{pid}/task"))
        except OSError:  # ended meanwhile
            continue
    return count
