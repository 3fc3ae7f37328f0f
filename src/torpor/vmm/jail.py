"""The jail of a VMM: a user of its own, a root directory with nothing but its files, namespaces, no privileges.

Nothing is copied and no helper is started. A thread of the control process enters the jail and starts the VMM from
there, so that the VMM never has a privilege: mounts, namespaces and credentials are a thread's own in Linux, and the
thread ends with the start. The root is a tmpfs in a mount namespace of the VMM: when the VMM ends, nothing is left.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final

from torpor.vmm import kernel
from torpor.vmm.kernel import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC, MS_REMOUNT

NAMESPACES: Final = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
ROOT_OPTIONS: Final = "mode=755,size=64k,nr_inodes=256"
KVM: Final = "dev/kvm"
TUN: Final = "dev/net/tun"
URANDOM: Final = "dev/urandom"
NULL: Final = "dev/null"
DEVICES: Final = {KVM: (10, 232), TUN: (10, 200), URANDOM: (1, 9), NULL: (1, 3)}
"""Their numbers (Documentation/admin-guide/devices.txt)."""


class Access(Enum):
    READ = "read"
    WRITE = "write"
    """The file is given to the VMM's user."""
    RUN = "run"
    """Programs and libraries."""


_FLAGS: Final = {Access.READ: MS_RDONLY | MS_NOEXEC, Access.WRITE: MS_NOEXEC, Access.RUN: MS_RDONLY}
READABLE: Final = 0o444
"""Several VMMs, each a user of its own, read an image's files; the directories above let nobody else get to them."""


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or directory of the host, under a name in the jail."""

    source: Path
    name: str
    access: Access


@dataclass(frozen=True, slots=True)
class Jail:
    """What one VMM may see and be."""

    uid: int
    """Its user, and its group."""
    root: Path
    """An empty directory of the host. It stays empty: the root is mounted over it for the VMM alone."""
    binds: tuple[Bind, ...]
    devices: tuple[str, ...] = ()
    """Of DEVICES."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Symbolic links, name → what it points to."""


def prepare(jail: Jail) -> None:
    """What the jail needs on the host: its user can read, or owns, the files. Blocking. Raises OSError."""
    jail.root.mkdir(mode=0o700, exist_ok=True)
    for bind in jail.binds:
        mode = bind.source.stat().st_mode
        if bind.access is Access.WRITE:
            os.chown(bind.source, jail.uid, jail.uid)
        elif bind.access is Access.READ and stat.S_ISREG(mode) and mode & READABLE != READABLE:
            bind.source.chmod(mode | READABLE)


def enter(jail: Jail, capabilities: int) -> None:
    """Move the calling thread into the jail for good; it must start the VMM and end. Raises OSError.

    Args:
        capabilities: `kernel.known_capabilities()`, asked for while /proc could still be seen.
    """
    kernel.unshare(NAMESPACES)
    os.umask(0o022)  # the thread's own by now
    kernel.mount("", "/", flags=MS_REC | MS_PRIVATE)
    kernel.mount("torpor", jail.root, "tmpfs", MS_NOSUID | MS_NOEXEC, ROOT_OPTIONS)
    for bind in jail.binds:
        _bind(bind, jail.root / bind.name)
    for name in jail.devices:
        _make_device(jail.root / name, DEVICES[name], jail.uid)
    for name, target in jail.links.items():
        (jail.root / name).symlink_to(target)
    kernel.mount("", jail.root, flags=MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NOEXEC, options=ROOT_OPTIONS)
    os.chdir(jail.root)
    kernel.pivot_root_here()
    kernel.become(jail.uid, capabilities)


def _bind(bind: Bind, target: Path) -> None:
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if bind.source.is_dir():
        target.mkdir(mode=0o755)
    else:
        target.touch(mode=0o644)
    kernel.mount(bind.source, target, flags=MS_BIND)
    kernel.mount("", target, flags=MS_BIND | MS_REMOUNT | MS_NOSUID | MS_NODEV | _FLAGS[bind.access])


def _make_device(target: Path, number: tuple[int, int], uid: int) -> None:
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    os.mknod(target, stat.S_IFCHR | 0o600, os.makedev(*number))
    os.chown(target, uid, uid)
