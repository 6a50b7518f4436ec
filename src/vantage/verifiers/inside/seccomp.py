"""Which system calls may a judged program make? A seccomp filter: no network, no processes, no reach to other processes.

A Python program needs none of what is denied here, with the exception of new processes (`fork`), which may be allowed.
Denied calls fail with EPERM, so that the program sees an ordinary Python exception.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

from vantage.verifiers.inside.kernel import PR_SET_SECCOMP, checked, libc

# BPF: load a word of the call's description, jump if equal, jump if any bit is set, return.
LOAD, EQUAL, AT_LEAST, BITS, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, FAIL = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
"""Offsets into the description of a call; arguments are 64 bits, of which the low half counts here (little-endian)."""
CLONE_THREAD = 0x00010000

# The same numbers everywhere: calls that came after the numbering was unified.
COMMON = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "pidfd_open": 434,
    "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442, "memfd_secret": 447, "process_mrelease": 448,
}  # fmt: skip
DENIED_X86_64 = {
    "socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50, "accept4": 288,
    "kill": 62, "tkill": 200, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "setsid": 112, "setpgid": 109,
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312,
    "setpriority": 141, "ioprio_set": 251, "sched_setparam": 142, "sched_setscheduler": 144, "sched_setattr": 314,
    "sched_setaffinity": 203, "migrate_pages": 256, "move_pages": 279,
    "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161,
    "add_key": 248, "request_key": 249, "keyctl": 250, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
    "shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240, "memfd_create": 319, "open_by_handle_at": 304,
}  # fmt: skip
DENIED_AARCH64 = {
    "socket": 198, "connect": 203, "accept": 202, "bind": 200, "listen": 201, "accept4": 242,
    "kill": 129, "tkill": 130, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240, "setsid": 157, "setpgid": 154,
    "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272,
    "setpriority": 140, "ioprio_set": 30, "sched_setparam": 118, "sched_setscheduler": 119, "sched_setattr": 274,
    "sched_setaffinity": 122, "migrate_pages": 238, "move_pages": 239,
    "unshare": 97, "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41, "chroot": 51,
    "add_key": 217, "request_key": 218, "keyctl": 219, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282,
    "shmget": 194, "semget": 190, "msgget": 186, "mq_open": 180, "memfd_create": 279, "open_by_handle_at": 265,
}  # fmt: skip


class Machine:
    """Numbers of an architecture's calls. (Every run imports this: `dataclasses` would take as long as all else.)

    Args:
        audit: the kernel's number for the architecture.
        denied: calls that fail.
        clone, tgkill, prlimit: calls whose argument decides.
        forks: calls that only make processes.
        foreign: calls from this number on belong to another calling convention and end the program.
    """

    clone3 = 435

    def __init__(
        self, audit: int, denied: dict[str, int], clone: int, forks: tuple[int, ...], tgkill: int, prlimit: int,
        foreign: int | None = None,
    ) -> None:  # fmt: skip
        self.audit, self.denied, self.clone, self.forks = audit, denied, clone, forks
        self.tgkill, self.prlimit, self.foreign = tgkill, prlimit, foreign


MACHINES = {
    "x86_64": Machine(0xC000003E, DENIED_X86_64 | COMMON, 56, (57, 58), 234, 302, foreign=0x40000000),
    "aarch64": Machine(0xC00000B7, DENIED_AARCH64 | COMMON, 220, (), 131, 261),
}


def available() -> bool:
    """Whether a filter is known for this machine."""
    return sys.platform == "linux" and os.uname().machine in MACHINES


def build(machine: Machine, own: int, processes: bool) -> bytes:
    """The filter: an array of instructions of 8 bytes.

    Args:
        machine: numbers of the calls.
        own: process id of the program, the only process that `tgkill` (abort, threads) may signal.
        processes: whether new processes are allowed, beside threads.
    """
    fail = FAIL | errno.EPERM
    # An instruction is (code, jump if true, jump if false, operand); jumps count instructions to skip.
    code: list[tuple[int, int, int, int]] = [
        (LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, machine.audit), (RETURN, 0, 0, KILL), (LOAD, 0, 0, NUMBER),
    ]  # fmt: skip
    if machine.foreign is not None:
        code += [(AT_LEAST, 0, 1, machine.foreign), (RETURN, 0, 0, KILL)]
    # clone3 hides its flags behind a pointer; told that there is none, the C library takes clone.
    code += [(EQUAL, 0, 1, machine.clone3), (RETURN, 0, 0, FAIL | errno.ENOSYS)]
    for number in (*machine.denied.values(), *(() if processes else machine.forks)):
        code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, fail)]
    # Limits may be changed for oneself only (argument 0), signals sent to oneself only.
    for number, allowed in ((machine.prlimit, 0), (machine.tgkill, own)):
        code += [(EQUAL, 0, 4, number), (LOAD, 0, 0, FIRST_ARGUMENT), (EQUAL, 1, 0, allowed), (RETURN, 0, 0, fail),
                 (RETURN, 0, 0, ALLOW)]  # fmt: skip
    if not processes:
        code += [(EQUAL, 0, 4, machine.clone), (LOAD, 0, 0, FIRST_ARGUMENT), (BITS, 1, 0, CLONE_THREAD),
                 (RETURN, 0, 0, fail), (RETURN, 0, 0, ALLOW)]  # fmt: skip
    code += [(RETURN, 0, 0, ALLOW)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def install(processes: bool) -> None:
    """Put the filter on this process and all that it starts; needs no_new_privs. Raises OSError."""
    program = build(MACHINES[os.uname().machine], os.getpid(), processes)
    kept = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions, padding, their address.
    prog = struct.pack("@HP", len(program) // 8, ctypes.addressof(kept))
    filtered = 2
    checked(
        libc().prctl(PR_SET_SECCOMP, ctypes.c_ulong(filtered), prog, ctypes.c_ulong(0), ctypes.c_ulong(0)), "seccomp"
    )
