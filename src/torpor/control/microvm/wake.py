"""SUSPENDED → RUNNING: restore the saved generation, then `/resume`; SUSPENDED all the while (spec 1.6).

Nothing is deleted by a resume that fails: the VM is SUSPENDED as before, says why, and can be tried again.
"""

from __future__ import annotations

from typing import Final

from torpor.control.microvm.machine import Machine, MicrovmRun, amend, call_hook, has_hook, live_of, move, order_of
from torpor.control.reasons import RESUME_FAILED
from torpor.control.steps import AfterCrash, JsonObject, Step, Steps
from torpor.model.errors import HookFailed
from torpor.model.hooks import Hook
from torpor.model.ids import MicrovmId
from torpor.model.microvm import Cause, Microvm


def params_for(microvm: Microvm) -> JsonObject:
    return {"resume_hook": has_hook(Hook.RESUME, microvm)}


async def restore(run: MicrovmRun) -> JsonObject:
    live = live_of(run)
    live.life += 1
    placement = await run.tools.host.resume(await order_of(run))
    run.timed([(step.name, step.seconds) for step in placement.steps])
    return {"address": placement.address}


async def release(run: MicrovmRun) -> None:
    await run.tools.host.release(MicrovmId(run.subject))


async def resume_hook(run: MicrovmRun) -> JsonObject:
    return await call_hook(run, Hook.RESUME)


async def done(run: MicrovmRun) -> None:
    live = live_of(run)
    live.active_at = run.tools.clock.now()
    move(run, Cause.RESUMED, last_active_at=live.active_at, suspended_at=None, state_reason=None, is_parked=False)


async def undone(run: MicrovmRun) -> None:
    reason = str(run.error) if isinstance(run.error, HookFailed) else RESUME_FAILED.format(run.error)
    amend(run, state_reason=reason)


RESUME: Final[Steps[Machine]] = Steps(
    "resume",
    (
        Step("restore", restore, undo=release),
        # No undo: the restored VM is released, and with it whatever the hook did.
        Step("resume_hook", resume_hook, is_interruptible=True, applies=lambda params: bool(params["resume_hook"])),
    ),
    done=done,
    undone=undone,
    after_crash=AfterCrash.UNDO,
)
