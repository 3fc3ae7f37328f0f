"""Commands, shells and copies beside an application: who may have them, and what they mean for being idle.

A shell comes through the endpoint: its bytes count as all that crosses it, its silence does not (spec 5.7). Commands
and copies are asked of `/torpor/v1`; while one goes on it holds its microVM awake, for it would be cut off otherwise.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from torpor.control.gate import Gate
from torpor.control.microvm.face import Microvms
from torpor.control.microvm.live import Holder, Live
from torpor.control.microvm.machine import Machine
from torpor.host.session import Output, Session, SessionOrder, Unpacked
from torpor.model.caller import Caller
from torpor.model.clock import Clock
from torpor.model.errors import Conflict, GateUnavailable, GuestRefused, GuestSilent, Invalid, NotFound, VmmFailed
from torpor.model.ids import MicrovmId
from torpor.model.microvm import MicrovmState

S: Final = MicrovmState
RUN: Final = "torpor:RunCommand"
READ: Final = "torpor:ReadFiles"
WRITE: Final = "torpor:WriteFiles"


class CountedSession:
    """A session whose bytes are traffic of its microVM."""

    def __init__(self, session: Session, live: Live, clock: Clock) -> None:
        self._session = session
        self._live = live
        self._clock = clock

    async def read(self) -> Output | int:
        found = await self._session.read()
        self._count()
        return found

    async def write(self, data: bytes) -> None:
        self._count()
        await self._session.write(data)

    def _count(self) -> None:
        self._live.active_at = self._live.shell_byte_at = self._clock.now()

    async def end_input(self) -> None:
        await self._session.end_input()

    async def resize(self, columns: int, rows: int) -> None:
        await self._session.resize(columns, rows)

    async def close(self) -> None:
        await self._session.close()


class Sessions:
    """What the edge and `/torpor/v1` open."""

    def __init__(self, machine: Machine, gate: Gate, microvms: Microvms) -> None:
        self._machine = machine
        self._gate = gate
        self._microvms = microvms

    async def open_shell(self, microvm_id: MicrovmId) -> Session:
        """A shell on a terminal, for a request that the gate has admitted.

        Raises:
            GateUnavailable: it cannot be had.
        """
        live = self._machine.fleet.find(microvm_id)
        if live is None or live.state is not S.RUNNING:
            raise GateUnavailable(f"{microvm_id} does not run")
        try:
            session = await self._machine.host.open_session(microvm_id, SessionOrder(has_terminal=True))
        except (GuestRefused, GuestSilent, VmmFailed) as error:
            raise GateUnavailable(f"{microvm_id} gives no shell: {error}") from error
        return CountedSession(session, live, self._machine.clock)

    @asynccontextmanager
    async def run(self, caller: Caller, microvm_id: MicrovmId, order: SessionOrder) -> AsyncIterator[Session]:
        """Run a command, waking the microVM if its idle policy lets traffic do so; the end of the block ends it.

        Raises:
            NotFound, Denied
            Conflict: it does not run and is not woken, or its application does not run.
            Invalid: the command cannot be started.
        """
        live = await self._awake(caller, microvm_id, RUN)
        with self._held(live, Holder("command", caller.principal, self._machine.clock.now())), _refused():
            session = await self._machine.host.open_session(live.microvm_id, order)
            try:
                yield session
            finally:
                await session.close()

    async def pack(self, caller: Caller, microvm_id: MicrovmId, path: str) -> AsyncGenerator[bytes, None]:
        """A file or directory as a tar archive; as `run` raises, and NotFound for a path that is not there."""
        live = await self._awake(caller, microvm_id, READ)
        with self._held(live, Holder("copy", caller.principal, self._machine.clock.now())), _refused():
            async for chunk in self._machine.host.pack(live.microvm_id, path):
                yield chunk

    async def unpack(self, caller: Caller, microvm_id: MicrovmId, path: str, base: str,
                     archive: AsyncIterator[bytes]) -> Unpacked:
        """Put a tar archive at `path`, or as `base` into it when it is a directory; as `run` raises."""
        live = await self._awake(caller, microvm_id, WRITE)
        with self._held(live, Holder("copy", caller.principal, self._machine.clock.now())), _refused():
            return await self._machine.host.unpack(live.microvm_id, path, base, archive)

    async def _awake(self, caller: Caller, microvm_id: MicrovmId, action: str) -> Live:
        microvm = await self._microvms.authorized(caller, microvm_id, action)
        live = self._machine.fleet.find(microvm.microvm_id)
        if live is None:
            raise Conflict(f"The MicroVM {microvm_id} has been terminated.")
        try:
            await self._gate.opened(live)
        except GateUnavailable as error:
            raise Conflict(f"The MicroVM is not awake: {error}") from error
        return live

    @contextmanager
    def _held(self, live: Live, holder: Holder) -> Iterator[None]:
        live.holders.append(holder)
        try:
            yield
        finally:
            live.holders.remove(holder)
            live.active_at = max(live.active_at, self._machine.clock.now())
            self._machine.fleet.tell(live)


@contextmanager
def _refused() -> Iterator[None]:
    """What the guest says no to, as the API says it."""
    try:
        yield
    except GuestRefused as error:
        kind = {404: NotFound, 409: Conflict}.get(error.status, Invalid)
        raise kind(error.said) from error
    except (GuestSilent, VmmFailed) as error:
        raise Conflict(f"The MicroVM went away: {error}") from error
