"""The one line between deciding and doing: `control` speaks to a machine only through `Host`.

On one machine it is an object in the same process; it could be a remote one, so everything that crosses is plain data.
Every call names its steps and their durations, which become the microVM's timeline.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from torpor.host.holding import Holding
from torpor.host.session import Session, SessionOrder, Unpacked
from torpor.host.transfer import Transfers
from torpor.model.egress import INTERNET, Egress
from torpor.model.hooks import Hook, Hooks
from torpor.model.ids import BuildId, MicrovmId
from torpor.model.image import SnapshotSizes


@dataclass(frozen=True, slots=True)
class StepTime:
    """One named part of an action and how long it took."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where the data plane sends a request for one port of one microVM."""

    address: str
    port: int
    headers: Mapping[str, str] = field(default_factory=dict)
    """Added to the request; the simulated host needs them, real VMs do not."""


@dataclass(frozen=True, slots=True)
class LaunchOrder:
    """A new microVM from a snapshot."""

    microvm_id: MicrovmId
    snapshot: str
    """`BuildOutcome.snapshot`: the host's own name for it."""
    memory_mib: int
    egress: Egress = INTERNET
    role: str | None = None
    """ARN of the execution role whose credentials the guest may ask for."""


@dataclass(frozen=True, slots=True)
class Placement:
    """A VM that has been restored, its clock and entropy right, and that can be reached."""

    address: str
    """Of the slot: new at each launch and resume, so no proxy reuses a connection to an earlier life."""
    steps: tuple[StepTime, ...]


@dataclass(frozen=True, slots=True)
class Saved:
    """A paused VM whose memory and disk are in new, published files."""

    memory_bytes: int
    """Bytes written: what the VM had dirtied."""
    disk_bytes: int
    steps: tuple[StepTime, ...]
    stored_bytes: int = 0
    """What the saved generation takes as long as it is kept: its whole memory, and of its disk what was changed."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the VMM of one VM uses."""

    cpu_seconds: float
    """Since it was started."""
    memory_bytes: int
    """That it shares with nobody."""


@dataclass(frozen=True, slots=True)
class HookAnswer:
    """What the application answered: an HTTP status, or 0 and why there is none."""

    status: int
    failure: str | None
    """`timeout`, `refused` or `broken`."""
    seconds: float


@dataclass(frozen=True, slots=True)
class ApplicationExited:
    microvm_id: MicrovmId
    exit_code: int


@dataclass(frozen=True, slots=True)
class VmmDied:
    microvm_id: MicrovmId
    how: str


@dataclass(frozen=True, slots=True)
class ApplicationLine:
    """One line the application wrote; `stream` is `stdout` or `stderr`."""

    microvm_id: MicrovmId
    at: datetime
    stream: str
    line: str


@dataclass(frozen=True, slots=True)
class GuestFellSilent:
    """The agent has said nothing for so long, not even that it lives; the VMM goes on."""

    microvm_id: MicrovmId
    seconds: float
    is_stalled: bool = False
    """Its VM stands still since the machine has no room for what it writes; it is let go on again and again."""


@dataclass(frozen=True, slots=True)
class GuestHeardAgain:
    """After `GuestFellSilent`."""

    microvm_id: MicrovmId


@dataclass(frozen=True, slots=True)
class FilesDamaged:
    """The newest saved generation is not what was saved; `reason` names the file and the place."""

    microvm_id: MicrovmId
    reason: str


HostEvent = ApplicationExited | VmmDied | ApplicationLine | GuestFellSilent | GuestHeardAgain | FilesDamaged


@dataclass(frozen=True, slots=True)
class Found:
    """What the machine holds of one microVM, whatever the store believes."""

    microvm_id: MicrovmId
    is_alive: bool
    """Its VMM runs and this process can reach it; a paused one is alive."""
    is_paused: bool
    saved_at: datetime | None
    """When its newest whole saved generation was published; None when there is none."""


@dataclass(frozen=True, slots=True)
class BuildOrder:
    """Everything needed to turn a code artifact into a snapshot."""

    build_id: BuildId
    code_artifact: bytes | None
    """The zip, already fetched and at most the configured size."""
    memory_mib: int
    hooks: Hooks
    environment: Mapping[str, str]
    """The image's variables and the platform's (spec 2.6)."""
    all_capabilities: bool
    egress: Egress = INTERNET
    """Of every VM of the build."""
    role: str | None = None
    """ARN of the build role, whose credentials the application may ask for; the Dockerfile may not."""


@dataclass(frozen=True, slots=True)
class BuildOutcome:
    """A finished snapshot, ready to launch from."""

    snapshot: str
    sizes: SnapshotSizes
    steps: tuple[StepTime, ...]


@dataclass(frozen=True, slots=True)
class HostStats:
    engine: str
    acceleration: str
    cores: int
    memory_bytes: int
    memory_used_bytes: int
    """Private memory of all VMMs."""
    disk_free_bytes: int


BuildLine = Callable[[str, str], Awaitable[None]]
"""Called with (stream, line): stream is `build`, `snapshot` or `validate`."""


class Host(Protocol):
    """One machine that runs microVMs."""

    @property
    def architecture(self) -> str:
        """`ARM_64` or `X86_64`, as the API names it."""
        ...

    @property
    def chipset(self) -> tuple[str, str]:
        """Chipset and generation of the build records this machine makes, for example (`INTEL`, `1`)."""
        ...

    @property
    def engine(self) -> str:
        """Name of the engine that its VMs run with."""
        ...

    @property
    def boot_id(self) -> str:
        """Of the machine: another one after each restart of it, which no VM survives."""
        ...

    async def start(self) -> None:
        """Take the machine into use: adopt what lives, remove what nobody owns, fill the pools."""
        ...

    async def stop(self) -> None:
        """Stop this process's part; VMs go on."""
        ...

    async def survey(self) -> list[Found]:
        """What there is of each microVM on the machine, looked up now; called after `start`."""
        ...

    async def build(self, order: BuildOrder, on_line: BuildLine) -> BuildOutcome:
        """Run the Dockerfile in a builder VM, start the application, save it, validate it.

        Raises:
            BuildFailed: with the stateReason of the build record; nothing is left behind. Its `sizes` attribute holds
                a `SnapshotSizes` when the container was built but the application failed (spec 2.3).
        """
        ...

    async def admit(self, memory_mib: int) -> None:
        """Refuse a microVM of this size (its baseline) that could not be suspended later. Raises NoRoom."""
        ...

    async def launch(self, order: LaunchOrder) -> Placement:
        """Restore a new VM from an image's snapshot. Raises HostBusy, VmmFailed, SnapshotDamaged, GuestSilent."""
        ...

    async def call_hook(self, microvm_id: MicrovmId, hook: Hook, port: int, body: str | None,
                        timeout: timedelta) -> HookAnswer:
        """POST the hook inside the guest. A hook that fails is an answer, not an exception. Raises GuestSilent."""
        ...

    async def save(self, microvm_id: MicrovmId) -> Saved:
        """Pause and write a new generation of memory and disk, atomically; the VM stays paused.

        A VM that is paused already, by a save that a crash cut short, is saved all the same.

        Raises:
            SaveFailed: the VM is paused and whole; `unpause` lets it go on.
        """
        ...

    async def unpause(self, microvm_id: MicrovmId) -> None: ...

    async def release(self, microvm_id: MicrovmId) -> None:
        """End the VMM and give back its slot and memory; saved files stay. Repeating it does nothing."""
        ...

    async def resume(self, order: LaunchOrder) -> Placement:
        """Restore the VM's latest saved generation. The files stay as they were whatever happens."""
        ...

    async def recover(self, order: LaunchOrder) -> Placement:
        """Boot the disk of the latest saved generation and start the application anew: memory is lost, files stay.

        The saved files stay as they were whatever happens. Raises as `resume` does.
        """
        ...

    async def discard(self, microvm_id: MicrovmId) -> None:
        """`release`, and delete everything the VM had on this machine. Repeating it does nothing."""
        ...

    async def delete_snapshot(self, snapshot: str) -> None:
        """Delete an image version's snapshot. Repeating it does nothing."""
        ...

    async def set_egress(self, microvm_id: MicrovmId, egress: Egress) -> None:
        """Change what a living VM may reach, at once, open connections included. Does nothing when it has none."""
        ...

    def upstream(self, microvm_id: MicrovmId, port: int) -> Upstream | None:
        """Where to send a request now; None while the VM is not placed."""
        ...

    async def last_traffic(self, microvm_id: MicrovmId) -> datetime | None:
        """When a byte last crossed the endpoint in either direction (spec 5.7), None if never or unknown."""
        ...

    def events(self) -> AsyncIterator[HostEvent]:
        """Applications that ended, VMMs that died, agents that fell silent, lines applications wrote. One consumer."""
        ...

    async def loads(self) -> Mapping[MicrovmId, Load]:
        """Of every VM that runs on the machine, looked up now."""
        ...

    async def open_session(self, microvm_id: MicrovmId, order: SessionOrder) -> Session:
        """Run a command beside the application; the end of this life of the VM closes it.

        Raises:
            GuestRefused: 409 no application runs, 422 the command cannot be started.
            GuestSilent, VmmFailed
        """
        ...

    def pack(self, microvm_id: MicrovmId, path: str) -> AsyncIterator[bytes]:
        """A file or directory of the application as a tar archive. Raises GuestRefused, GuestSilent, VmmFailed."""
        ...

    async def unpack(self, microvm_id: MicrovmId, path: str, base: str, archive: AsyncIterator[bytes]) -> Unpacked:
        """Make what an archive holds at `path`, or as `base` in it when that is a directory or ends in a slash.

        Raises:
            GuestRefused: 400 when the archive is none or holds what is not unpacked.
            GuestSilent, VmmFailed
        """
        ...

    async def stats(self) -> HostStats: ...

    @property
    def damaged(self) -> Mapping[str, str]:
        """Directories of saved files that were found damaged, and what is wrong with them."""
        ...

    @property
    def transfers(self) -> Transfers:
        """Its part of exports and imports."""
        ...

    async def inventory(self) -> list[Holding]:
        """What the machine has of Torpor and this host itself does not need; what records need is in it."""
        ...

    async def remove(self, holding: Holding) -> None:
        """Remove something of the inventory. Repeating it does nothing. Raises NotRemoved."""
        ...
