"""Decides which request may pass an endpoint, and holds it while the microVM is launched or woken (spec 5.4, 5.7).

The token comes first: a request that it does not let in wakes nobody and learns nothing, not even whether the
host name exists. The way of a request to a RUNNING microVM touches neither the database nor the machine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from torpor.control.microvm.actions import Actions
from torpor.control.microvm.live import Live
from torpor.control.microvm.machine import Machine
from torpor.control.tokens import FAILED, Seal, ingress_names
from torpor.host.base import Upstream
from torpor.model.connector import ALL_INGRESS, HTTP_INGRESS, SHELL_INGRESS
from torpor.model.endpoint import Grant
from torpor.model.errors import GateDenied, GateUnavailable, Permanent, Retryable
from torpor.model.ids import MicrovmId
from torpor.model.microvm import Microvm, MicrovmState
from torpor.store import microvms

log: Final = logging.getLogger(__name__)
S: Final = MicrovmState
CLOSED_PORT: Final = "Access to port denied"
TRIES: Final = 2
"""Resumes for one request, when the first fails (spec 5.7: 502 after a few)."""


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that may pass, and where to."""

    microvm_id: MicrovmId
    upstream: Upstream
    is_shell: bool = False


class Gate:
    """What the edge asks about each request, connection or stream that is opened."""

    def __init__(self, machine: Machine, seal: Seal, actions: Actions) -> None:
        self._machine = machine
        self._seal = seal
        self._actions = actions

    async def admit(self, label: str, token: str | None, port: int, is_websocket: bool = True,
                    arrived: Callable[[str], Awaitable[None]] | None = None) -> Admission:
        """Authenticate, and hold the request while the microVM is launched or woken.

        Args:
            label: the first label of the host name.
            token: as the request carried it.
            port: that the request wants; a shell token has none.
            is_websocket: a shell is only given to a WebSocket.
            arrived: told the microVM's id once the token is good, before anything is woken; what it raises goes on.

        Raises:
            GateDenied: with the text of the 403.
            GateUnavailable: nothing can answer.
        """
        grant = self._seal.open(token)
        live = self._machine.fleet.at(label)
        if live is None:
            await self._deny_or_ended(label, grant)
            raise GateUnavailable(f"{grant.microvm_id} has been terminated")
        _authorize(live.microvm, grant, port)
        if grant.is_shell and not is_websocket:
            raise GateUnavailable("a shell token on a plain request")
        if arrived is not None:
            await arrived(live.microvm_id)
        live.held += 1
        try:
            await self.opened(live)
            return self._admission(live, grant, port)
        finally:
            live.held -= 1

    def _admission(self, live: Live, grant: Grant, port: int) -> Admission:
        if live.microvm.exited_at is not None:
            raise GateUnavailable(f"the application of {live.microvm_id} has ended")
        upstream = self._machine.host.upstream(live.microvm_id, port)
        if upstream is None:
            raise GateUnavailable(f"{live.microvm_id} is not placed")
        live.active_at = self._machine.clock.now()
        return Admission(live.microvm_id, upstream, grant.is_shell)

    async def opened(self, live: Live) -> None:
        """Return when it is RUNNING and open, waking it if its idle policy says so. Raises GateUnavailable."""
        if live.state is not S.RUNNING or live.closing:
            await self._hold(live)

    async def _deny_or_ended(self, label: str, grant: Grant) -> None:
        """Only who holds a token for a microVM learns that it has ended."""
        ended = await self._machine.database.read(lambda connection: microvms.get(connection, grant.microvm_id))
        if ended is None or ended.endpoint_label != label:
            raise GateDenied(FAILED)

    async def _hold(self, live: Live) -> None:
        """Return when it is RUNNING and open, or raise GateUnavailable."""
        longest = self._machine.settings.gate_hold
        ready = asyncio.ensure_future(self._until_running(live))
        enough = asyncio.ensure_future(self._machine.clock.sleep(longest.total_seconds()))
        try:
            await asyncio.wait({ready, enough}, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                raise GateUnavailable(f"{live.microvm_id} was {live.state} for {longest.total_seconds():.0f} s")
            ready.result()
        finally:
            for task in (ready, enough):
                task.cancel()
            await asyncio.gather(ready, enough, return_exceptions=True)

    async def _until_running(self, live: Live) -> None:
        tries = 0
        while live.state is not S.RUNNING or live.closing:
            if live.state in (S.TERMINATING, S.TERMINATED):
                raise GateUnavailable(f"{live.microvm_id} has been terminated")
            if live.state is not S.SUSPENDED:
                await live.change()
                continue
            policy = live.microvm.idle_policy
            if not live.microvm.is_parked and (policy is None or not policy.auto_resume):
                raise GateUnavailable(f"{live.microvm_id} is SUSPENDED and has no auto-resume")
            tries += 1
            try:
                await asyncio.shield(self._actions.resume(live, "endpoint"))
            except (Permanent, Retryable) as error:
                log.warning("%s could not be woken: %s", live.microvm_id, error)
                if tries >= TRIES:
                    raise GateUnavailable(f"{live.microvm_id} could not be woken: {error}") from error


def _authorize(microvm: Microvm, grant: Grant, port: int) -> None:
    if microvm.microvm_id != grant.microvm_id:
        raise GateDenied(FAILED)
    if grant.is_shell:
        if SHELL_INGRESS not in ingress_names(microvm):
            raise GateDenied(CLOSED_PORT)
        return
    if not grant.allows(port) or not ingress_names(microvm) & {HTTP_INGRESS, ALL_INGRESS}:
        raise GateDenied(CLOSED_PORT)
