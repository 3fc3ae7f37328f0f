"""Control over a simulated machine: its clock, and what goes wrong on it. Not there on a real one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Final

from torpor.api.errors import Answer
from torpor.api.extras.request import PREFIX, Extra, ExtraRoute, json_answer
from torpor.host.simulated import SimulatedHost
from torpor.model.clock import VirtualClock
from torpor.model.errors import (
    GuestSilent,
    HostBusy,
    Invalid,
    NoRoom,
    NotFound,
    SaveFailed,
    SnapshotDamaged,
    TorporError,
    VmmFailed,
)
from torpor.model.hooks import Hook
from torpor.model.ids import MicrovmId

LONGEST: Final = 400 * 24 * 3600.0
"""Seconds the clock may be moved at once, or a fault may last."""
MOST_TIMES: Final = 1000
HTTP_STATUSES: Final = range(100, 600)
FINAL_STATUSES: Final = range(200, 600)

_ERRORS: Final[dict[str, Callable[[str], TorporError]]] = {
    "GuestSilent": GuestSilent,
    "HostBusy": lambda message: HostBusy(message, delay=timedelta(seconds=1)),
    "NoRoom": NoRoom,
    "SaveFailed": SaveFailed,
    "SnapshotDamaged": SnapshotDamaged,
    "VmmFailed": VmmFailed,
}


async def move_clock(extra: Extra) -> Answer:
    """Move time forward; everything that was due on the way has happened when this answers."""
    await _host(extra)
    if not isinstance(extra.clock, VirtualClock):
        raise NotFound("This machine's clock cannot be moved")
    await extra.clock.advance(timedelta(seconds=_number(extra.document(), "seconds", LONGEST)))
    return json_answer({"now": extra.clock.now()})


async def set_fault(extra: Extra) -> Answer:
    """A slow or failing step, or a hook that answers badly."""
    host, document = await _host(extra), extra.document()
    if "hook" in document:
        _set_hook_fault(host, document)
    else:
        _set_step_fault(host, document)
    return json_answer({})


async def mend(extra: Extra) -> Answer:
    (await _host(extra)).faults.mend()
    return json_answer({})


async def exit_application(extra: Extra) -> Answer:
    """The application's main process ends with `code`."""
    host, microvm_id = await _placed(extra)
    host.exit_application(microvm_id, int(_number(extra.document(), "code", 255, 0)))
    return json_answer({})


async def kill_vmm(extra: Extra) -> Answer:
    host, microvm_id = await _placed(extra)
    host.kill_vmm(microvm_id)
    return json_answer({})


async def set_answers(extra: Extra) -> Answer:
    """The application answers its next `times` requests (all, when not given) `seconds` late, or with `status`."""
    host, microvm_id = await _placed(extra)
    document = extra.document()
    status = int(_number(document, "status", 599, 0)) or None
    if status is not None and status not in FINAL_STATUSES:
        raise Invalid("status must be a final HTTP status")
    host.faults.fail_answers(microvm_id, status=status, seconds=_number(document, "seconds", LONGEST, 0),
                             times=_times(document) or None)
    return json_answer({})


async def write_line(extra: Extra) -> Answer:
    """The application writes `text` to `stream`."""
    host, microvm_id = await _placed(extra)
    document = extra.document()
    text, stream = document.get("text", ""), document.get("stream", "stdout")
    if not isinstance(text, str) or stream not in ("stdout", "stderr"):
        raise Invalid("text must be a string and stream stdout or stderr")
    host.write_line(microvm_id, text, stream)
    return json_answer({})


async def _host(extra: Extra) -> SimulatedHost:
    await extra.call.authorize("torpor:Simulate")
    host = extra.call.control.host
    if not isinstance(host, SimulatedHost):
        raise NotFound("This machine is not simulated")
    return host


async def _placed(extra: Extra) -> tuple[SimulatedHost, MicrovmId]:
    """The host, and a microVM of the caller that is on it now."""
    host = await _host(extra)
    microvm = await extra.call.control.microvms.get(extra.call.caller, MicrovmId(extra.labels["microvmId"]))
    if host.upstream(microvm.microvm_id, 1) is None:
        raise Invalid(f"The MicroVM {microvm.microvm_id} is {microvm.state} and has no running application")
    return host, microvm.microvm_id


def _set_hook_fault(host: SimulatedHost, document: dict[str, Any]) -> None:
    hook = _choice(document, "hook", {hook.value: hook for hook in Hook})
    failure = document.get("failure")
    if failure not in (None, "timeout", "refused", "broken"):
        raise Invalid("failure must be timeout, refused or broken")
    status = int(_number(document, "status", 599, 0))
    if status and status not in HTTP_STATUSES:
        raise Invalid("status must be an HTTP status")
    owner = document.get("microvmId")
    if not isinstance(owner, str | None):
        raise Invalid("microvmId must be a string")
    host.faults.fail_hook(hook, status=status, failure=failure, seconds=_number(document, "seconds", LONGEST, 0),
                          owner=owner, times=_times(document))


def _set_step_fault(host: SimulatedHost, document: dict[str, Any]) -> None:
    step = document.get("step")
    if not isinstance(step, str):
        raise Invalid("Either step or hook must be given")
    if "error" in document:
        error = _choice(document, "error", _ERRORS)
        host.faults.fail_step(step, error(f"told to fail at {step}"), _times(document) or 1)
    if "seconds" in document:
        host.faults.set_delay(step, _number(document, "seconds", LONGEST))


def _times(document: dict[str, Any]) -> int | None:
    return int(_number(document, "times", MOST_TIMES)) if "times" in document else None


def _number(document: dict[str, Any], name: str, most: float, default: float | None = None) -> float:
    value = document.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise Invalid(f"{name} must be a number from 0 to {most:g}")
    return value


def _choice(document: dict[str, Any], name: str, choices: dict[str, Any]) -> Any:
    value = document.get(name)
    if not isinstance(value, str) or value not in choices:
        raise Invalid(f"{name} must be one of {', '.join(choices)}")
    return choices[value]


ROUTES: Final[tuple[ExtraRoute, ...]] = (
    ("POST", f"{PREFIX}/simulated/clock", move_clock),
    ("POST", f"{PREFIX}/simulated/faults", set_fault),
    ("DELETE", f"{PREFIX}/simulated/faults", mend),
    ("POST", f"{PREFIX}/simulated/microvms/{{microvmId}}/exit", exit_application),
    ("POST", f"{PREFIX}/simulated/microvms/{{microvmId}}/answers", set_answers),
    ("POST", f"{PREFIX}/simulated/microvms/{{microvmId}}/kill", kill_vmm),
    ("POST", f"{PREFIX}/simulated/microvms/{{microvmId}}/lines", write_line),
)
