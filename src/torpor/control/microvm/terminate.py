"""Any state → TERMINATED: `/terminate` when it runs, then everything it had is discarded (spec 1.6, 3.3)."""

from __future__ import annotations

import logging
from typing import Final

from torpor.control.microvm.machine import Machine, MicrovmRun, call_hook, has_hook, move
from torpor.control.reasons import SUCCESS
from torpor.control.steps import AfterCrash, JsonObject, Step, Steps
from torpor.model.hooks import Hook
from torpor.model.ids import MicrovmId
from torpor.model.microvm import Cause, Microvm, MicrovmState

log: Final = logging.getLogger(__name__)


def params_for(microvm: Microvm, reason: str, *, is_alive: bool = True) -> JsonObject:
    """`is_alive`: the application is there and may be told."""
    calls_hook = (
        is_alive and microvm.state is MicrovmState.RUNNING and microvm.exited_at is None
        and has_hook(Hook.TERMINATE, microvm)
    )
    return {"terminate_hook": calls_hook, "reason": reason}


async def terminate_hook(run: MicrovmRun) -> JsonObject:
    if run.is_recovered:
        return {"skipped": "it may have been called before the service stopped"}
    try:
        return await call_hook(run, Hook.TERMINATE)
    except Exception as error:  # whatever it is, and be it that the VM is dead: the microVM ends (spec 3.3)
        log.info("%s: %s", run.subject, error)
        return {"failure": str(error)}


async def discard(run: MicrovmRun) -> None:
    await run.tools.host.discard(MicrovmId(run.subject))


async def done(run: MicrovmRun) -> None:
    move(run, Cause.RELEASED, terminated_at=run.tools.clock.now(), state_reason=run.params["reason"])


TERMINATE: Final[Steps[Machine]] = Steps(
    "terminate",
    (
        # No undo for either: a microVM that is TERMINATING only ever becomes TERMINATED.
        Step("terminate_hook", terminate_hook, applies=lambda params: bool(params["terminate_hook"])),
        Step("discard", discard, must_succeed=True),
    ),
    done=done,
    after_crash=AfterCrash.GO_ON,
)


def begin(run: MicrovmRun, cause: Cause) -> None:
    """Put RUNNING, PENDING, … → TERMINATING into the write that opens `run`."""
    reason = run.params["reason"]
    move(run, cause, state_reason=None if reason == SUCCESS else reason)
