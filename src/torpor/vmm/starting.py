"""Starts a VMM in its jail, with its limits, and writes down which process it is."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from torpor.model.errors import VmmFailed
from torpor.vmm import cgroup, guard, jail, kernel
from torpor.vmm.cgroup import Cgroups, Limits
from torpor.vmm.jail import Jail
from torpor.vmm.process import Identity, Launch, identity_of, in_namespace, spawn
from torpor.vmm.record import IDENTITY, Record, write_identity
from torpor.vmm.uids import Uids

OPEN_FILES: Final = 1024
MAX_CPUS_BESIDES: Final = 0.5
"""CPU time a VMM may use beside its vCPUs, for disks, network and its own work."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wardens:
    """What the VMMs of a control process share."""

    uids: Uids = field(default_factory=Uids)
    cgroups: Cgroups = field(default_factory=Cgroups)

    def release(self, uid: int, run_dir: Path) -> None:
        """What a VMM had that is gone. Blocking; repeating it does nothing."""
        self.uids.give_back(uid)
        self.cgroups.remove(run_dir.name)


@dataclass(frozen=True, slots=True)
class Cell:
    """One VMM to start."""

    run_dir: Path
    netns: Path | None
    """None: a network namespace of its own, with nothing in it."""
    jail: Jail
    limits: Limits
    record: Record
    read_only: tuple[Path, Path] | None = None
    """A file of the jail that the VMM opens for writing, and the host's of which it gets a descriptor for reading."""


def start(cell: Cell, wardens: Wardens, outfit: Callable[[contextlib.ExitStack], Launch]) -> Identity:
    """Start a VMM; blocking.

    Args:
        outfit: Says what to start. Called in the network namespace, before the jail is entered; what it opens on the
            stack is closed when the VMM has been started.

    Raises:
        VmmFailed: nothing is left.
    """
    capabilities = kernel.known_capabilities()
    (cell.run_dir / IDENTITY).unlink(missing_ok=True)

    listeners: list[int] = []

    def enter() -> None:
        if cell.netns is None:
            kernel.unshare(kernel.CLONE_NEWNET)  # no network at all rather than the host's
        jail.enter(cell.jail, capabilities)
        if cell.read_only is not None:
            listeners.append(guard.hold_opens())

    def begin() -> int:
        with contextlib.ExitStack() as opened:
            return spawn(outfit(opened), enter)

    try:
        jail.prepare(cell.jail)
        cell.record.write(cell.run_dir)
        group = wardens.cgroups.make(cell.run_dir.name, cell.limits)
        pid = in_namespace(cell.netns, begin)
        try:
            return _settled(pid, cell, group, listeners)
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
    except OSError as error:
        wardens.release(cell.jail.uid, cell.run_dir)
        raise VmmFailed(f"a VMM in {cell.run_dir} could not be started: {error}") from error
    except BaseException:
        wardens.release(cell.jail.uid, cell.run_dir)
        raise
    finally:
        for listener in listeners:
            os.close(listener)


def _settled(pid: int, cell: Cell, group: Path | None, listeners: list[int]) -> Identity:
    """What a VMM needs once it runs. Raises OSError."""
    identity = identity_of(pid)
    write_identity(cell.run_dir, identity)
    if group is not None:
        cgroup.add(group, pid)
    _limit(pid)
    if cell.read_only is not None:
        guard.answer_open(listeners[0], *cell.read_only)
    return identity


def _limit(pid: int) -> None:
    """No core, which would hold the guest's memory, and not too many files. Raises OSError."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        Path(f"/proc/{pid}/coredump_filter").write_text("0")
        try:
            resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
        except PermissionError:  # in a container without CAP_SYS_RESOURCE the limits stay those of the service
            log.debug("the limits of process %d could not be set", pid)


def take_uid(wardens: Wardens) -> int:
    """A user for one VMM. Blocking. Raises VmmFailed."""
    try:
        return wardens.uids.take()
    except LookupError as error:
        raise VmmFailed(str(error)) from error
