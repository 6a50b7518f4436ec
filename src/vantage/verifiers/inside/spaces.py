"""How does a process get a machine of its own? Linux namespaces and a root folder in memory that shows little, read-only.

The new root holds the interpreter, the system's libraries, four devices and a scratch folder of limited size. There is no
/proc, no home, no network interface, and no process from outside.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence

from vantage.verifiers.inside.kernel import checked, libc

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
FLAGS = {"ro": RDONLY, "nosuid": NOSUID, "nodev": NODEV, "noexec": NOEXEC,
         "noatime": 1024, "nodiratime": 2048, "relatime": 1 << 21}  # fmt: skip
DETACH = 2
OLD = "/.outside"
"""Where the machine's own root is, until the new one is complete."""


def unshare(user: bool, inside: int) -> None:
    """Leave the machine's namespaces; the next child is process 1 of the new ones.

    Args:
        user: also take a user namespace, which needs no rights; without one this needs CAP_SYS_ADMIN.
        inside: the user and group that this process's own become in the user namespace.

    Raises OSError where the machine refuses.
    """
    uid, gid = os.geteuid(), os.getegid()
    flags = NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET | (NEWUSER if user else 0)
    checked(libc().unshare(ctypes.c_int(flags)), "unshare")
    if user:
        # The kernel takes a group map of an ordinary user only once setgroups is given up.
        for name, text in (("setgroups", "deny"), ("uid_map", f"{inside} {uid} 1"), ("gid_map", f"{inside} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def enter(shown: Sequence[str], links: Mapping[str, str], scratch: str, size: int, files: int, owner: int) -> None:
    """Change to a new root that shows the paths `shown` read-only, and an empty writable folder `scratch`.

    Args:
        shown: absolute paths of files, devices and folders; a folder comes before those within it.
        links: symbolic links to make, path → target.
        scratch: a path in the new root.
        size: bytes that the scratch folder may hold, in memory; nothing of it remains.
        files: how many files it may hold.
        owner: user and group that own it.
    """
    sources = {path: OLD + os.path.realpath(path) for path in shown}
    base = next(path for path in ("/tmp", "/mnt", "/var") if os.path.isdir(path))
    _mount(None, "/", None, REC | PRIVATE)  # nothing that is mounted here shows outside
    _mount("tmpfs", base, "tmpfs", NOSUID | NODEV, "size=4m,mode=755")
    os.mkdir(base + OLD)
    os.chdir(base)
    checked(libc().pivot_root(b".", OLD[1:].encode()), "pivot_root")
    os.chdir("/")
    os.makedirs(scratch, exist_ok=True)
    options = f"size={size},nr_inodes={files},mode=700,uid={owner},gid={owner}"
    _mount("tmpfs", scratch, "tmpfs", NOSUID | NODEV | NOEXEC, options)
    for path, source in sources.items():
        if os.path.lexists(source):
            _show(source, path)
    for path, target in links.items():
        os.symlink(target, path)
    with open(f"{OLD}/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = [line.split() for line in file]
    checked(libc().umount2(OLD.encode(), DETACH), "umount")
    os.rmdir(OLD)
    for fields in mounts:
        path = fields[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
        if path != scratch and path != OLD and not path.startswith(OLD + "/"):
            # In a user namespace flags that a mount has already must be given again.
            kept = sum(FLAGS.get(word, 0) for word in set(fields[5].split(",")))
            _mount(None, path, None, REMOUNT | BIND | RDONLY | NOSUID | kept & ~(RDONLY | NOSUID))


def _show(source: str, path: str) -> None:
    if os.path.isdir(source):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    _mount(source, path, None, BIND | REC)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    words = [None if x is None else os.fsencode(x) for x in (source, target, kind, options)]
    result = libc().mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3])
    checked(result, f"mount {target}")
