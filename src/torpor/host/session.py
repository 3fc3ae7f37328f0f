"""A command that runs beside a microVM's application, and what can be done with it. Engines without VMs have it too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torpor.model.ids import MicrovmId


@dataclass(frozen=True, slots=True)
class SessionOrder:
    """What to run in the application's container; a shell when there are no args."""

    args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    """On top of the application's."""
    cwd: str = "/"
    user: str = ""
    """A name or `uid[:gid]` of the image; empty is root."""
    has_terminal: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    stream: str
    """`stdout` or `stderr`; with a terminal everything is `stdout`."""
    data: bytes


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What was copied into a microVM."""

    files: int
    """Links too, directories not."""
    size_bytes: int


class Session(Protocol):
    """A running command. Closing it hangs up on one with a terminal and kills another."""

    async def read(self) -> Output | int:
        """What it wrote next, or its exit code at the end. Raises GuestSilent when its microVM is gone."""
        ...

    async def write(self, data: bytes) -> None:
        """Give it input; waits while it does not take any. What it does not want is dropped."""
        ...

    async def end_input(self) -> None: ...

    async def resize(self, columns: int, rows: int) -> None:
        """Tell it the size of its terminal; nothing without one."""
        ...

    async def close(self) -> None:
        """Repeating it does nothing."""
        ...


class OpenSessions:
    """Those of every microVM: its suspend or end closes them, for nobody else tells their clients."""

    def __init__(self) -> None:
        self._open: defaultdict[MicrovmId, set[Session]] = defaultdict(set)

    def add(self, microvm_id: MicrovmId, session: Session) -> None:
        self._open[microvm_id].add(session)

    def forget(self, microvm_id: MicrovmId, session: Session) -> None:
        self._open[microvm_id].discard(session)
        if not self._open[microvm_id]:
            del self._open[microvm_id]

    async def close(self, microvm_id: MicrovmId) -> None:
        for session in self._open.pop(microvm_id, set()):
            await session.close()

    async def close_all(self) -> None:
        for microvm_id in list(self._open):
            await self.close(microvm_id)
