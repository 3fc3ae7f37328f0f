"""RUNNING → SUSPENDED: `/suspend`, save to new files, commit, and only then end the VMM.

A save that fails costs nothing: the VM goes on and its record says why.
"""

from __future__ import annotations

import logging
from typing import Final

from torpor.control.microvm import terminate
from torpor.control.microvm.live import Live
from torpor.control.microvm.machine import MicrovmRun, call_hook, has_hook, live_of, move
from torpor.control.reasons import FELL_BACK, GONE_IN_SUSPEND, LOST_IN_SAVE, SUCCESS, SUSPEND_FAILED
from torpor.control.steps import AfterCrash, JsonObject, Step, Steps
from torpor.model.errors import HookFailed, Interrupted, VmmFailed
from torpor.model.hooks import Hook
from torpor.model.ids import MicrovmId
from torpor.model.microvm import Cause, Microvm, MicrovmState

DRAIN_POLL: Final = 0.01
log: Final = logging.getLogger(__name__)


def params_for(microvm: Microvm, *, on_hook_failure: str, parks: bool = False) -> JsonObject:
    """`on_hook_failure` is `terminate` or `keep`; `parks`: because the service stops."""
    return {"suspend_hook": has_hook(Hook.SUSPEND, microvm), "on_hook_failure": on_hook_failure, "parks": parks}


def begin(run: MicrovmRun, cause: Cause) -> None:
    """Put RUNNING → SUSPENDING into the write that opens `run`."""
    live = live_of(run)
    live.found = None
    move(run, cause, state_reason=None, last_active_at=max(live.active_at, live.microvm.last_active_at))


async def suspend_hook(run: MicrovmRun) -> JsonObject:
    if _is_gone(live_of(run)):
        raise VmmFailed(GONE_IN_SUSPEND)
    try:
        return await call_hook(run, Hook.SUSPEND)
    except HookFailed as error:
        if not run.is_recovered:
            raise
        # It may have answered 200 to a process that died; asking twice must not cost the VM.
        log.info("%s: repeated after a restart: %s", run.subject, error)
        return {"failure": str(error)}


async def save(run: MicrovmRun) -> JsonObject:
    live = live_of(run)
    if _is_gone(live):
        return _saved_before_crash(run, live)
    await _let_requests_end(run, live)
    saved = await run.tools.host.save(MicrovmId(run.subject))
    run.timed([(step.name, step.seconds) for step in saved.steps])
    live.saved = saved
    _suspended(run)
    return {"memory_bytes": saved.memory_bytes, "disk_bytes": saved.disk_bytes}


async def _let_requests_end(run: MicrovmRun, live: Live) -> None:
    """The gate holds new requests since SUSPENDING; an answer that has begun would be cut off by the pause."""
    tools = run.tools
    until = tools.clock.monotonic() + tools.settings.drain.total_seconds()
    while tools.fleet.open_requests(live.microvm_id) > 0 and tools.clock.monotonic() < until:
        await tools.clock.sleep(DRAIN_POLL)


def _saved_before_crash(run: MicrovmRun, live: Live) -> JsonObject:
    assert live.found is not None
    if live.found.saved_at is None or live.found.saved_at < run.entry.started_at:
        raise VmmFailed(GONE_IN_SUSPEND)
    _suspended(run)
    return {"found": True}


def _suspended(run: MicrovmRun) -> None:
    move(run, Cause.SAVED, suspended_at=run.tools.clock.now(), is_parked=bool(run.params["parks"]))


def _is_gone(live: Live) -> bool:
    """After a restart of the service: its VMM ended meanwhile."""
    return live.found is not None and not live.found.is_alive


async def unpause(run: MicrovmRun) -> None:
    """Let it go on; one that cannot is dead, which `undone` sees by its having no upstream."""
    live = live_of(run)
    if _is_gone(live):
        return
    try:
        await run.tools.host.unpause(live.microvm_id)
    except VmmFailed as error:
        log.error("%s cannot go on after a failed suspend: %s", run.subject, error)
        live.lost = LOST_IN_SAVE.format(error)


async def release(run: MicrovmRun) -> None:
    await run.tools.host.release(MicrovmId(run.subject))


async def failed(run: MicrovmRun) -> None:
    live = live_of(run)
    if isinstance(run.error, HookFailed) and run.params["on_hook_failure"] == "terminate":
        move(run, Cause.HOOK_FAILED, state_reason=str(run.error))
    elif isinstance(run.error, Interrupted) and live.ending is not None and live.ending[0] is not Cause.VMM_DIED:
        cause, reason = live.ending
        move(run, cause, state_reason=None if reason == SUCCESS else reason)


async def undone(run: MicrovmRun) -> None:
    live = live_of(run)
    if live.state is MicrovmState.SUSPENDING:
        cause, reason = _end_of(live)
        if cause is None:
            move(run, Cause.SAVE_FAILED, state_reason=SUSPEND_FAILED.format(run.entry.failure))
            return
        if cause is Cause.VMM_DIED and await _fell_back(run, reason):
            return
        move(run, cause, state_reason=None if reason == SUCCESS else reason)
    else:
        reason = live.microvm.state_reason or SUCCESS
    run.follow = (terminate.TERMINATE, {"terminate_hook": False, "reason": reason}, "suspend")


def _end_of(live: Live) -> tuple[Cause | None, str]:
    """Why it cannot go on after a suspend that failed; None when it can."""
    lost, live.lost = live.lost, None
    if live.ending is not None and live.ending[0] is not Cause.VMM_DIED:
        return live.ending
    if _is_gone(live):
        return Cause.VMM_DIED, GONE_IN_SUSPEND
    if live.ending is not None:
        return live.ending  # the machine has told how it ended
    return (None, "") if lost is None else (Cause.VMM_DIED, lost)


async def _fell_back(run: MicrovmRun, reason: str) -> bool:
    """Its VMM has died: keep it as an earlier suspend left it, if there was one."""
    host, microvm_id = run.tools.host, MicrovmId(run.subject)
    found = {each.microvm_id: each for each in await host.survey()}.get(microvm_id)
    if found is None or found.saved_at is None:
        return False
    await host.release(microvm_id)
    log.error("%s falls back to what was saved at %s", microvm_id, found.saved_at)
    move(run, Cause.FELL_BACK, suspended_at=run.tools.clock.now(), is_parked=bool(run.params["parks"]),
         state_reason=FELL_BACK.format(reason.rstrip(".")))
    return True


SUSPEND: Final = Steps(
    "suspend",
    (
        # No undo: there is no hook that takes `/suspend` back.
        Step("suspend_hook", suspend_hook, is_interruptible=True, applies=lambda params: bool(params["suspend_hook"])),
        Step("save", save, undo=unpause),
        # No undo: SUSPENDED is recorded, and the saved files are whole.
        Step("release", release, must_succeed=True),
    ),
    failed=failed,
    undone=undone,
    after_crash=AfterCrash.GO_ON,
)
