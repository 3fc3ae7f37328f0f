"""System calls that Python does not have, for one thread: errors keep their number.

Credentials, namespaces and the root directory belong to a thread in Linux. glibc's setresuid changes all threads of a
process, the system call only the calling one; a process started from that thread inherits what the thread has.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import Any, Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2

PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38

_NUMBERS: Final = {
    "x86_64": {"pivot_root": 155, "setgroups": 116, "setresuid": 117, "setresgid": 119, "seccomp": 317},
    "aarch64": {"pivot_root": 41, "setgroups": 159, "setresuid": 147, "setresgid": 149, "seccomp": 277},
}
_libc: Final = ctypes.CDLL(None, use_errno=True)
# Looked up now: later calls come from threads that cannot see the files of the host any more.
_mount, _umount2, _unshare, _setns = _libc.mount, _libc.umount2, _libc.unshare, _libc.setns
_prctl, _syscall = _libc.prctl, _libc.syscall
_syscall.restype = ctypes.c_long
_numbers: Final = _NUMBERS.get(platform.machine(), {})


def mount(source: Path | str, target: Path | str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2). Raises OSError."""
    words = [os.fsencode(word) or None for word in (source, target, kind)]
    _check("mount", target, _mount(*words, ctypes.c_ulong(flags), options.encode() or None))


def unmount_detached(target: Path | str) -> None:
    """Take a mount out of sight now; it ends when nobody uses it. Raises OSError."""
    _check("umount", target, _umount2(os.fsencode(target), MNT_DETACH))


def unshare(flags: int) -> None:
    """New namespaces for the calling thread, and for what it starts. Raises OSError."""
    _check("unshare", hex(flags), _unshare(flags))


def enter_namespace(path: Path, kind: int) -> None:
    """setns(2). Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check("setns", path, _setns(handle, kind))
    finally:
        os.close(handle)


def pivot_root_here() -> None:
    """Make the working directory, a mount point, the root, and the old root unreachable. Raises OSError."""
    _check("pivot_root", ".", _syscall(_numbers["pivot_root"], b".", b"."))
    # The old root now lies over the new one (pivot_root(2), notes).
    unmount_detached(".")
    os.chdir("/")


def become(uid: int, capabilities: int) -> None:
    """Give up root for good: this thread, and what it starts, is the user and group `uid` and can become nobody else.

    Args:
        capabilities: how many the kernel knows.
    """
    for number in range(capabilities):
        _check("prctl", "PR_CAPBSET_DROP", _prctl(PR_CAPBSET_DROP, *map(ctypes.c_ulong, (number, 0, 0, 0))))
    _check("prctl", "PR_SET_NO_NEW_PRIVS", _prctl(PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))))
    _check("setgroups", uid, _syscall(_numbers["setgroups"], ctypes.c_long(0), None))
    for name in ("setresgid", "setresuid"):
        _check(name, uid, _syscall(_numbers[name], *([ctypes.c_long(uid)] * 3)))


def seccomp(operation: int, flags: int, argument: Any) -> int:
    """seccomp(2); what it returns. Raises OSError."""
    result = int(_syscall(_numbers["seccomp"], ctypes.c_ulong(operation), ctypes.c_ulong(flags), argument))
    if result < 0:
        _check("seccomp", operation, result)
    return result


def known_capabilities() -> int:
    """How many capabilities this kernel has."""
    return int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1


def _check(name: str, what: Any, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}", str(what))
