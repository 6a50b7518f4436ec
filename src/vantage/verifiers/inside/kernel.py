"""How does a process give up rights for good? Landlock, capabilities and no_new_privs, by ctypes, on Linux.

System calls that the C library has no name for go by number. These numbers are the same on every architecture.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Sequence

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
# Landlock's bits: execute 0, write file 1, read file 2, read folder 3, make and remove 4-12, refer 13, truncate 14, ioctl 15.
READ_FILE, READ_FOLDER = 0b101, 0b1101
CHANGE_FILE = 0b110 | 1 << 14 | 1 << 15
"""What a rule about a single file, such as /dev/null, may grant."""


def libc() -> ctypes.CDLL:
    """The C library, with `errno` kept."""
    return ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> int:
    """The result of a call into the C library; raises OSError that names the call where it failed."""
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
    return result


def prctl(option: int, *arguments: int) -> None:
    """prctl(2); raises OSError."""
    # Unset arguments of a variadic call must be full words: the kernel insists on zeros.
    words = [ctypes.c_ulong(x) for x in (*arguments, 0, 0, 0, 0)[:4]]
    checked(libc().prctl(option, *words), f"prctl {option}")


def syscall(number: int, *arguments: int | bytes | None) -> int:
    """A system call by number; raises OSError."""
    words = [ctypes.c_long(x) if isinstance(x, int) else x for x in arguments]
    return checked(libc().syscall(ctypes.c_long(number), *words), f"system call {number}")


def no_new_privileges() -> None:
    """No program that is started from here on gains rights (setuid, file capabilities); needed for what follows."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Give up every capability, for root without another user to change to."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # beyond the last one that this kernel knows, or not allowed to
            break
    with contextlib.suppress(OSError):  # kernels before 4.3 have none
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header, nothing = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    checked(libc().capset(header, nothing), "capset")


def landlock_version() -> int:
    """Version of Landlock that this kernel offers, 0 for none."""
    try:
        return syscall(LANDLOCK_CREATE, None, 0, 1)
    except OSError:
        return 0


def landlock(readable: Sequence[str], writable: Sequence[str], changeable: Sequence[str]) -> int:
    """Confine this process to reading below `readable` and writing below `writable` folders and `changeable` files.

    Also no TCP from version 4, no signals to processes outside and no abstract sockets from version 6.
    Returns the version; 0 where there is no Landlock and nothing was done.
    """
    version = landlock_version()
    if version < 1:
        return 0
    files = (1 << 13) - 1
    for since, bit in ((2, 13), (3, 14), (5, 15)):
        files |= (version >= since) << bit
    attributes = struct.pack("=QQQ", files, 3, 3)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = syscall(LANDLOCK_CREATE, attributes, len(attributes), 0)
    try:
        for paths, allowed in ((readable, READ_FOLDER), (writable, files), (changeable, CHANGE_FILE & files)):
            for path in paths:
                _allow(ruleset, path, allowed if os.path.isdir(path) or allowed != READ_FOLDER else READ_FILE)
        syscall(LANDLOCK_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)
    return version


def _allow(ruleset: int, path: str, allowed: int) -> None:
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there needs no rule
    try:
        syscall(LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", allowed, beneath), 0)
    finally:
        os.close(beneath)
