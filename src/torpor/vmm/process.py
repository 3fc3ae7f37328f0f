"""VMM processes: started in a session and a network namespace of their own, found again, watched until they are gone.

A process is known by a pidfd, never by its number alone, so a recycled pid is neither taken over nor killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from torpor.model.errors import VmmFailed
from torpor.vmm.base import Tap
from torpor.vmm.kernel import CLONE_NEWNET, enter_namespace

TUNSETIFF: Final = 0x400454CA
TUNSETOWNER: Final = 0x400454CC
IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
LOG_TAIL_BYTES: Final = 600

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells a process from a later one with the same number."""

    pid: int
    start_time: int
    """Clock ticks since boot (proc(5), field 22 of stat)."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A program to start; it inherits `fds` under the numbers they have."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    fds: Sequence[int]
    output: Path | None = None
    """Where its standard output goes, when not to the log."""
    program: str | None = None
    """The file that runs, where the first word is another name."""


def spawn(launch: Launch, enter: Callable[[], None] | None = None) -> int:
    """Start a program in a session of its own and return its pid. Blocking and quick.

    Args:
        enter: moves the calling thread, which must end after this, to where the program is to run.
    """
    _keep_inherited_files()
    with contextlib.ExitStack() as opened:
        log = opened.enter_context(_appending(launch.log))
        output = opened.enter_context(_appending(launch.output)) if launch.output is not None else log
        null = opened.enter_context(open_fd(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)))
        if enter is not None:
            enter()
        # posix_spawn borrows the parent's memory like vfork: nothing of a large control process is copied.
        actions = [
            *((os.POSIX_SPAWN_DUP2, *pair) for pair in ((null, 0), (output, 1), (log, 2))),
            *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in launch.fds),
        ]
        return os.posix_spawn(
            launch.program or launch.argv[0], list(launch.argv), launch.environment, file_actions=actions, setsid=True,
            setsigmask=(), setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
        )  # fmt: skip


@functools.cache
def _keep_inherited_files() -> None:
    """What this process was started with (a lock, a socket) is not for VMMs. Python's own files are never passed on."""
    for place in Path("/proc/self/fd").iterdir():
        if (fd := int(place.name)) > 2:
            with contextlib.suppress(OSError):  # the one that reads the directory
                os.set_inheritable(fd, False)


@contextlib.contextmanager
def open_fd(fd: int) -> Iterator[int]:
    """A file descriptor for the time of a block."""
    try:
        yield fd
    finally:
        os.close(fd)


def _appending(path: Path) -> contextlib.AbstractContextManager[int]:
    return open_fd(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640))


def identity_of(pid: int) -> Identity:
    """Of a process that lives, or has ended and not been reaped yet."""
    return Identity(pid, start_time(pid) or 0)


def in_namespace(netns: Path | None, work: Callable[[], T]) -> T:
    """Run `work` on a thread of its own, in a network namespace when one is given. Blocking."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def enter() -> None:
        try:
            if netns is not None:
                enter_namespace(netns, CLONE_NEWNET)
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    # Not one of a pool, which would take the namespace along to its next task.
    thread = threading.Thread(target=enter, name=f"netns:{netns.name if netns else 'host'}")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def give_tap(tap: Tap, uid: int) -> None:
    """Let a user, and no other, open a tap in the calling thread's namespace. Raises OSError."""
    with open_fd(open_tap(tap)) as fd:
        fcntl.ioctl(fd, TUNSETOWNER, uid)


def open_tap(tap: Tap) -> int:
    """A file descriptor of a tap in the calling thread's namespace. Raises OSError, also for a missing tap."""
    socket.if_nametoindex(tap.device)  # TUNSETIFF would make a missing one
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        # VNET_HDR carries checksum and segmentation offload; saved network devices expect what they had.
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", tap.device.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    except BaseException:
        os.close(fd)
        raise
    return fd


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    return int(stat.rpartition(b")")[2].split()[19])


def find(is_it: Callable[[list[str]], bool]) -> int | None:
    """The pid of the process whose command line `is_it` knows. Blocking: looks at all processes."""
    for place in Path("/proc").iterdir():
        if place.name.isdigit() and is_it(command_line(int(place.name))):
            return int(place.name)
    return None


def command_line(pid: int) -> list[str]:
    """The words a process was started with; none for a dead or a kernel one."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


class VmmProcess:
    """A living process, ours or adopted. Needs a running loop."""

    def __init__(self, identity: Identity, *logs: Path) -> None:
        """Raises VmmFailed when the process is gone, or its number belongs to another one."""
        self.pid = identity.pid
        self._logs = logs
        try:
            self._pidfd = os.pidfd_open(identity.pid)
        except OSError as error:
            raise VmmFailed(f"the VMM with pid {identity.pid} is gone") from error
        # The pidfd is held now: what has the right start time after this is what the pidfd means.
        if start_time(identity.pid) != identity.start_time:
            os.close(self._pidfd)
            raise VmmFailed(f"pid {identity.pid} is no longer the VMM it was")
        self._loop = asyncio.get_running_loop()
        self._gone: asyncio.Future[str] = self._loop.create_future()
        self._loop.add_reader(self._pidfd, self._on_exit)

    @property
    def is_gone(self) -> bool:
        return self._gone.done()

    def kill(self) -> None:
        """SIGKILL; killing a dead process does nothing."""
        if not self._gone.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def exited(self) -> str:
        """Wait until the process is gone and say how it ended."""
        return await asyncio.shield(self._gone)

    def forget(self) -> None:
        """Stop watching; the process goes on."""
        if not self._gone.done():
            self._stop_watching()
            self._gone.cancel()

    def log_tail(self) -> str:
        """The end of what the process wrote."""
        return "; ".join(filter(None, map(_tail, self._logs)))

    def _on_exit(self) -> None:
        how = self._reap()
        self._stop_watching()
        tail = self.log_tail()
        self._gone.set_result(f"{how}: {tail}" if tail else how)

    def _stop_watching(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)

    def _reap(self) -> str:
        try:
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            return "ended; another process had started it, so how is unknown"
        if result is None:
            return "ended"
        if result.si_code == os.CLD_EXITED:
            return f"exited with code {result.si_status}"
        return f"killed by signal {result.si_status} ({signal.Signals(result.si_status).name})"


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
            return file.read().replace(b"\0", b"").decode(errors="replace").strip()  # a log that was emptied has a hole
    except OSError:
        return ""
