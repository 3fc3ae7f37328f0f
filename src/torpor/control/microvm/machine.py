"""What the steps of a microVM's actions share: the tools they get and how they change a record."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection

from torpor.control.microvm.live import Fleet, Live
from torpor.control.reasons import HOOK_ADVICE, HOOK_STATUS, HOOK_TIMEOUT, HOOK_UNCALLED, HOOK_UNREACHABLE
from torpor.control.settings import MicrovmSettings
from torpor.control.steps import Run
from torpor.host.base import Host, LaunchOrder
from torpor.model.clock import Clock
from torpor.model.egress import Egress
from torpor.model.errors import GuestSilent, HookFailed, StoreUnavailable
from torpor.model.hooks import Hook, iso_duration
from torpor.model.ids import MicrovmId
from torpor.model.microvm import Cause, Microvm, after
from torpor.store import microvms
from torpor.store.database import Database

log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Machine:
    """The tools of every step."""

    host: Host
    database: Database
    clock: Clock
    fleet: Fleet
    settings: MicrovmSettings
    outward: Callable[[Sequence[str]], Awaitable[Egress]]
    """What egress connectors let through, looked up at each launch and resume."""


MicrovmRun = Run[Machine]


def live_of(run: MicrovmRun) -> Live:
    live = run.tools.fleet.find(MicrovmId(run.subject))
    assert live is not None, "an action's microVM stays in the fleet until it has ended"
    return live


async def order_of(run: MicrovmRun) -> LaunchOrder:
    microvm = live_of(run).microvm
    egress = await run.tools.outward(microvm.egress_connectors)
    return LaunchOrder(microvm.microvm_id, microvm.snapshot, microvm.memory_mib, egress, microvm.execution_role_arn)


def move(run: MicrovmRun, cause: Cause, **changes: Any) -> None:
    """Put a change of state into the run's next journal write."""
    amend(run, state=after(live_of(run).state, cause), **changes)


def amend(run: MicrovmRun, **changes: Any) -> None:
    """Put changed members of the record into the run's next journal write."""
    live, fleet = live_of(run), run.tools.fleet
    run.also(
        lambda connection: microvms.change(connection, live.microvm_id, changes),
        lambda: fleet.put(live, replace(live.microvm, **changes)),
    )


async def change(machine: Machine, live: Live, **changes: Any) -> None:
    """Change members that no action is about, now; it has happened already, so a store that fails is asked again."""
    await persist(machine, lambda connection: microvms.change(connection, live.microvm_id, changes))
    machine.fleet.put(live, replace(live.microvm, **changes))


async def persist(machine: Machine, work: Callable[[Connection], object]) -> None:
    """Write what has happened, however long the store takes."""
    while True:
        try:
            await machine.database.write(work)
            return
        except StoreUnavailable as error:
            log.error("cannot be recorded yet: %s", error)
            await machine.clock.sleep(error.delay.total_seconds())


async def call_hook(run: MicrovmRun, hook: Hook, body: str | None = None) -> dict[str, Any]:
    """Call a hook that is enabled.

    Raises:
        HookFailed: with the stateReason of spec 1.9; the texts for no answer at all are our own.
    """
    microvm = live_of(run).microvm
    timeout = microvm.hooks.timeout(hook) or timedelta(seconds=1)
    try:
        answer = await run.tools.host.call_hook(
            microvm.microvm_id, hook, microvm.hooks.port or 0, body, timeout
        )
    except GuestSilent as error:
        raise HookFailed(HOOK_UNCALLED.format(_named(hook), error)) from error
    if answer.status == 200:
        return {"status": 200}
    if answer.status:
        what = HOOK_STATUS.format(_named(hook), answer.status)
    elif answer.failure == "timeout":
        what = HOOK_TIMEOUT.format(_named(hook), iso_duration(timeout))
    else:
        what = HOOK_UNREACHABLE.format(_named(hook))
    raise HookFailed(f"{what} {HOOK_ADVICE}")


def has_hook(hook: Hook, microvm: Microvm) -> bool:
    return microvm.hooks.timeout(hook) is not None


def _named(hook: Hook) -> str:
    return hook.value.capitalize()
