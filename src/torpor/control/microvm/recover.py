"""SUSPENDED → RUNNING without the saved memory: the disk is booted cold, and the application starts anew.

For microVMs whose memory cannot be restored: damaged, or saved by another engine or processor. SUSPENDED all the
while; nothing is deleted by a recovery that fails. The application is called as at a launch, `/ready` and `/run`, the
latter without the payload, which is not kept.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Final

from torpor.control.microvm.machine import Machine, MicrovmRun, amend, has_hook, live_of, move, order_of
from torpor.control.reasons import RECOVER_FAILED, RECOVERED
from torpor.control.steps import AfterCrash, JsonObject, Step, Steps
from torpor.host.base import HookAnswer
from torpor.host.build_hooks import wait_for_hook
from torpor.model.hooks import Hook
from torpor.model.ids import MicrovmId
from torpor.model.microvm import Cause, Microvm

START_WITHIN: Final = timedelta(seconds=60)
"""How long an application may take until it answers `/run`."""


def params_for(microvm: Microvm) -> JsonObject:
    return {"ready_hook": has_hook(Hook.READY, microvm), "run_hook": has_hook(Hook.RUN, microvm)}


async def boot(run: MicrovmRun) -> JsonObject:
    live = live_of(run)
    live.life += 1
    placement = await run.tools.host.recover(await order_of(run))
    run.timed([(step.name, step.seconds) for step in placement.steps])
    return {"address": placement.address}


async def release(run: MicrovmRun) -> None:
    await run.tools.host.release(MicrovmId(run.subject))


async def ready_hook(run: MicrovmRun) -> JsonObject:
    timeout = live_of(run).microvm.hooks.timeout(Hook.READY) or START_WITHIN
    return {"calls": await _until_200(run, Hook.READY, timeout, None)}


async def run_hook(run: MicrovmRun) -> JsonObject:
    body = json.dumps({"microvmId": run.subject, "runHookPayload": None})
    return {"calls": await _until_200(run, Hook.RUN, START_WITHIN, body)}


async def _until_200(run: MicrovmRun, hook: Hook, timeout: timedelta, body: str | None) -> int:
    """An application that still starts refuses the connection: it is asked again."""
    live = live_of(run)

    async def ask(left: timedelta) -> HookAnswer:
        return await run.tools.host.call_hook(live.microvm_id, hook, live.microvm.hooks.port or 0, body, left)

    return await wait_for_hook(hook, timeout, ask, run.tools.clock)


async def done(run: MicrovmRun) -> None:
    live = live_of(run)
    live.active_at = run.tools.clock.now()
    move(run, Cause.RESUMED, last_active_at=live.active_at, suspended_at=None, state_reason=RECOVERED, is_parked=False,
         exit_code=None, exited_at=None)


async def undone(run: MicrovmRun) -> None:
    amend(run, state_reason=RECOVER_FAILED.format(run.error))


RECOVER: Final[Steps[Machine]] = Steps(
    "recover",
    (
        Step("boot", boot, undo=release),
        # No undo for either: the booted VM is released, and with it whatever the hooks did.
        Step("ready_hook", ready_hook, is_interruptible=True, applies=lambda params: bool(params["ready_hook"])),
        Step("run_hook", run_hook, is_interruptible=True, applies=lambda params: bool(params["run_hook"])),
    ),
    done=done,
    undone=undone,
    after_crash=AfterCrash.UNDO,
)
