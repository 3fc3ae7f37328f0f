"""PENDING → RUNNING: restore the image's snapshot, then `/run` (spec 1.6, 3.1)."""

from __future__ import annotations

import json
from typing import Final

from torpor.control.microvm.machine import MicrovmRun, call_hook, live_of, move, order_of
from torpor.control.reasons import LAUNCH_FAILED, SUCCESS
from torpor.control.steps import AfterCrash, JsonObject, Step, Steps
from torpor.model.errors import HookFailed, Interrupted
from torpor.model.hooks import Hook
from torpor.model.ids import MicrovmId
from torpor.model.microvm import Cause, MicrovmState


async def restore(run: MicrovmRun) -> JsonObject:
    live = live_of(run)
    live.life += 1
    placement = await run.tools.host.launch(await order_of(run))
    run.timed([(step.name, step.seconds) for step in placement.steps])
    return {"address": placement.address}


async def discard(run: MicrovmRun) -> None:
    await run.tools.host.discard(MicrovmId(run.subject))


async def run_hook(run: MicrovmRun) -> JsonObject:
    body = {"microvmId": run.subject, "runHookPayload": run.params["payload"]}
    return await call_hook(run, Hook.RUN, json.dumps(body, ensure_ascii=False))


async def done(run: MicrovmRun) -> None:
    live = live_of(run)
    live.active_at = run.tools.clock.now()
    move(run, Cause.LAUNCHED, last_active_at=live.active_at)


async def failed(run: MicrovmRun) -> None:
    live = live_of(run)
    if isinstance(run.error, Interrupted) and live.ending is not None:
        cause, reason = live.ending
        move(run, cause, state_reason=None if reason == SUCCESS else reason)
    elif isinstance(run.error, HookFailed):
        move(run, Cause.HOOK_FAILED, state_reason=str(run.error))
    else:
        move(run, Cause.LAUNCH_FAILED, state_reason=LAUNCH_FAILED.format(run.error))


async def undone(run: MicrovmRun) -> None:
    live = live_of(run)
    assert live.state is MicrovmState.TERMINATING
    move(run, Cause.RELEASED, terminated_at=run.tools.clock.now(),
         state_reason=live.microvm.state_reason or SUCCESS)


LAUNCH: Final = Steps(
    "launch",
    (
        Step("restore", restore, undo=discard),
        # No undo: discarding the VM takes what the hook did away with it.
        Step("run_hook", run_hook, is_interruptible=True, applies=lambda params: bool(params["run_hook"])),
    ),
    done=done,
    failed=failed,
    undone=undone,
    # A new VM rather than the half-launched one: each application sees exactly one `/run`.
    after_crash=AfterCrash.START_OVER,
)
