"""Answers a program that opens a file for writing, and never writes to it, with a read-only descriptor.

QEMU opens the memory file with O_RDWR also when it maps it privately. Every VM of an image maps the same file, so who
broke out of one QEMU could change the memory of the others. The open is held by a seccomp filter, which a
program cannot remove, and answered from here (seccomp_unotify(2)); a private writable mapping needs no more than a
descriptor for reading.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import select
import struct
import time
from pathlib import Path
from typing import Final

from torpor.vmm import kernel

ANSWERED_WITHIN: Final = 10.0
"""Seconds from the program's start to its open; 0.02 measured."""
FILTER: Final = 1
NEW_LISTENER: Final = 1 << 3
RECEIVE: Final = 0xC0502100
SEND: Final = 0xC0182101
ADD_DESCRIPTOR: Final = 0x40182103
AND_ANSWER: Final = 1 << 1
GO_ON: Final = 1
NOTIFICATION_BYTES: Final = 80
ID_AT, PID_AT, PATH_AT = 0, 8, 40
"""Places in struct seccomp_notif; the path is openat's second argument."""
LONGEST_PATH: Final = 256
LOAD: Final = 0x20
JUMP_IF_EQUAL: Final = 0x15
RETURN: Final = 0x06
ALLOW: Final = 0x7FFF0000
NOTIFY: Final = 0x7FC00000
ARCHITECTURE_AT, NUMBER_AT, FLAGS_AT = 4, 0, 32
"""Places in struct seccomp_data; the flags are openat's third argument."""


class _Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


_KINDS: Final = {"x86_64": (0xC000003E, 257), "aarch64": (0xC00000B7, 56)}
"""AUDIT_ARCH and the number of openat."""


def hold_opens() -> int:
    """Hold each openat of exactly O_RDWR in this thread and what it starts; the file descriptor tells of them.

    Only for a thread that cannot gain privileges. Raises OSError.
    """
    architecture, openat = _KINDS[platform.machine()]
    steps = [
        (LOAD, 0, 0, ARCHITECTURE_AT), (JUMP_IF_EQUAL, 0, 4, architecture),
        (LOAD, 0, 0, NUMBER_AT), (JUMP_IF_EQUAL, 0, 2, openat),
        # QEMU's other files are opened with O_CLOEXEC as well.
        (LOAD, 0, 0, FLAGS_AT), (JUMP_IF_EQUAL, 1, 0, os.O_RDWR),
        (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, NOTIFY),
    ]  # fmt: skip
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = _Program(len(steps), ctypes.addressof(code))
    return kernel.seccomp(FILTER, NEW_LISTENER, ctypes.byref(program))


def answer_open(listener: int, name: Path, path: Path) -> None:
    """Answer the open of `name` with a descriptor of `path` for reading; let others that are held go on. Blocking.

    The program is not yet under anybody's influence. Does nothing when it ends before.

    Raises:
        OSError
        TimeoutError: it does not open the file.
    """
    own = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    deadline = time.monotonic() + ANSWERED_WITHIN
    try:
        while True:
            if not _is_asked(listener, deadline):
                return
            with contextlib.suppress(FileNotFoundError):  # a signal interrupted the open: the program asks again
                if _answer(listener, os.fsencode(name), own):
                    return
    finally:
        os.close(own)


def _answer(listener: int, name: bytes, own: int) -> bool:
    """Take one question; whether it was for `name`. Raises FileNotFoundError when nobody waits for the answer."""
    notification = bytearray(NOTIFICATION_BYTES)
    fcntl.ioctl(listener, RECEIVE, notification)
    (number,) = struct.unpack_from("Q", notification, ID_AT)
    if _path_of(notification) == name:
        fcntl.ioctl(listener, ADD_DESCRIPTOR, struct.pack("QIIII", number, AND_ANSWER, own, 0, os.O_CLOEXEC))
        return True
    fcntl.ioctl(listener, SEND, struct.pack("QqiI", number, 0, 0, GO_ON))
    return False


def _path_of(notification: bytearray) -> bytes:
    """What the program wants to open. Raises OSError."""
    (pid,) = struct.unpack_from("I", notification, PID_AT)
    (address,) = struct.unpack_from("Q", notification, PATH_AT)
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(memory, LONGEST_PATH, address).partition(b"\0")[0]
    finally:
        os.close(memory)


def _is_asked(listener: int, deadline: float) -> bool:
    """Wait for a question; False when nobody with the filter is left. Raises TimeoutError."""
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    while left := max(0.0, deadline - time.monotonic()):
        for _, event in waiting.poll(left * 1000):
            return bool(event & select.POLLIN)
    raise TimeoutError(f"the program did not open its file within {ANSWERED_WITHIN:g} s")
