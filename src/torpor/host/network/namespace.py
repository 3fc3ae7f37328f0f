"""Network namespaces. Only whole threads can enter one, so work inside runs in threads of its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

T = TypeVar("T")

NAMESPACES: Final = Path("/run/netns")
"""Where iproute2 keeps them, so that `ip netns` shows and enters ours."""

_CLONE_NEWNET: Final = 0x40000000
_MS_BIND: Final = 4096
_MS_REC: Final = 16384
_MS_SHARED: Final = 1 << 20
_MNT_DETACH: Final = 2
_libc: Final = ctypes.CDLL(None, use_errno=True)


def create(name: str) -> Path:
    """Make a namespace that lives until `destroy`. Blocking. Raises FileExistsError, OSError."""
    path = NAMESPACES / name
    _prepare_folder()
    path.touch(mode=0o444, exist_ok=False)
    try:
        _in_thread(lambda: _bind_new_namespace(path))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def destroy(path: Path) -> None:
    """Let go of a namespace; the kernel removes it when no process is left in it. Repeating it does nothing."""
    # Mounted twice when two processes made /run/netns shared at the same time.
    while _call("umount2", str(path).encode(), _MNT_DETACH) == 0:
        pass
    path.unlink(missing_ok=True)


def inside(path: Path, work: Callable[[], T]) -> T:
    """Run `work` in a thread that has entered the namespace, and wait for it. Blocking."""

    def enter_and_work() -> T:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check("setns", _libc.setns(handle, _CLONE_NEWNET))
        finally:
            os.close(handle)
        return work()

    return _in_thread(enter_and_work)


@contextlib.contextmanager
def handle_of(path: Path) -> Iterator[int]:
    """An open file descriptor of the namespace, for netlink."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def _bind_new_namespace(path: Path) -> None:
    _check("unshare", _libc.unshare(_CLONE_NEWNET))
    own = f"/proc/self/task/{threading.get_native_id()}/ns/net"
    _check("mount", _call("mount", own.encode(), str(path).encode(), b"none", _MS_BIND, None))


def _prepare_folder() -> None:
    # As iproute2 does it: the folder is a shared mount, or a namespace would stay alive in every mount namespace
    # that copied it (ip-netns(8)).
    NAMESPACES.mkdir(mode=0o755, exist_ok=True)
    folder = str(NAMESPACES).encode()
    if _call("mount", b"", folder, b"none", _MS_SHARED | _MS_REC, None) != 0:
        _check("mount", _call("mount", folder, folder, b"none", _MS_BIND | _MS_REC, None))
        _check("mount", _call("mount", b"", folder, b"none", _MS_SHARED | _MS_REC, None))


def _in_thread(work: Callable[[], T]) -> T:
    outcome: list[tuple[T | None, BaseException | None]] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:  # carried to the caller's thread
            outcome.append((None, error))

    thread = threading.Thread(target=run, name="netns")
    thread.start()
    thread.join()
    value, error = outcome[0]
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def _call(name: str, *arguments: Any) -> int:
    return int(getattr(_libc, name)(*arguments))


def _check(name: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
