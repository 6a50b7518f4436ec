"""What happens between the start of a sandboxed process and the first line of the judged program?

This runs in a fresh interpreter. It takes the process into its cage as far as the level says, sets the limits, gives up
all rights, and becomes the program. On the status pipe, which the program does not get, it says `ready` before that,
`failed ...` if it could not, and `status N` (as of waitpid) at the end where it stays around as process 1.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys

TYPE_CHECKING = False  # every run imports this: `typing` and `signal` would cost a tenth of its time
if TYPE_CHECKING:
    from typing import Any

    Job = dict[str, Any]
    """What the parent says: see `vantage.verifiers.levels.job`."""

SIGKILL = 9


def main(job: Job) -> None:
    """Never returns."""
    try:
        os.set_inheritable(job["status"], False)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # if the machine runs out of memory, let it take this process
        if job["mode"] == "spaces":
            _in_spaces(job)
        _become(job)
    except BaseException as error:
        _say(job, f"failed {type(error).__name__}: {error}")
    os._exit(125)


def _in_spaces(job: Job) -> None:
    """Returns in process 2 of new namespaces, ready to become the program; the others wait and exit."""
    from vantage.verifiers.inside import kernel, spaces

    kernel.prctl(kernel.PR_SET_PDEATHSIG, SIGKILL)
    spaces.unshare(job["user_namespace"], job["uid"])
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        os._exit(0)
    # Process 1: when it ends the kernel ends every process of the namespace, daemons too.
    kernel.prctl(kernel.PR_SET_PDEATHSIG, SIGKILL)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    limits = job["limits"]
    spaces.enter(job["shown"], job["links"], job["scratch"], limits["scratch_bytes"], limits["files"], job["uid"])
    child = os.fork()
    if child:
        for descriptor in (0, 1, 2, *job["keep"]):
            os.close(descriptor)
        while True:
            pid, status = os.wait()
            if pid == child:
                _say(job, f"status {status}")
                os._exit(0)


def _become(job: Job) -> None:
    limits = job["limits"]
    os.chdir(job["scratch"])
    user = job["uid"] if job["change_user"] else None
    if user is not None:
        os.chown(".", user, user)
    for name, content in job["files"].items():
        with open(name, "xb") as file:
            file.write(content)
            if user is not None:
                os.fchown(file.fileno(), user, user)
    _limit("CORE", 0)
    _limit("FSIZE", limits["file_bytes"])
    _limit("NOFILE", limits["open_files"])
    _limit("STACK", limits["stack_bytes"])
    _limit("AS", limits["memory_bytes"])
    _limit("CPU", limits["cpu_s"], limits["cpu_s"] + 1)  # first a signal that names the reason, then the end
    _limit("MEMLOCK", 0)
    _limit("MSGQUEUE", 0)
    if job["tasks"] is not None:
        _limit("NPROC", job["tasks"])
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    if sys.platform == "linux":
        _lock(job)
    for descriptor in job["keep"]:
        os.set_inheritable(descriptor, True)
    _say(job, "ready")
    os.execve(job["argv"][0], job["argv"], dict(os.environ))


def _lock(job: Job) -> None:
    from vantage.verifiers.inside import kernel, seccomp

    # The end of the thread that started this ends it too; a change of user has cleared an earlier request.
    kernel.prctl(kernel.PR_SET_PDEATHSIG, SIGKILL)
    kernel.no_new_privileges()
    if os.geteuid() == 0:
        kernel.drop_capabilities()
    if job["landlock"]:
        kernel.landlock(job["shown"], [job["scratch"]], ["/dev/null"])
    if job["seccomp"]:
        seccomp.install(job["limits"]["processes"] > 1)


def _limit(name: str, soft: int, hard: int | None = None) -> None:
    """Lower a limit; one that this system does not know, or that is lower already, is left alone."""
    number = getattr(resource, f"RLIMIT_{name}", None)
    if number is None:
        return
    most = resource.getrlimit(number)[1]
    wanted = [soft, soft if hard is None else hard]
    if most != resource.RLIM_INFINITY:
        wanted = [min(value, most) for value in wanted]
    with contextlib.suppress(ValueError, OSError):  # macOS refuses some
        resource.setrlimit(number, (wanted[0], wanted[1]))


def _say(job: Job, text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(job["status"], text.encode("utf-8", "replace")[:2000] + b"\n")
