"""How `/ready` and `/validate` are asked (spec 3.3)."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from torpor.host.base import HookAnswer
from torpor.host.build_hooks import wait_for_hook
from torpor.model.clock import VirtualClock
from torpor.model.errors import BuildFailed
from torpor.model.hooks import Hook

MINUTE = timedelta(minutes=1)


async def ask_with(*answers: HookAnswer, timeout: timedelta = MINUTE) -> int:
    clock = VirtualClock()
    left = list(answers)

    async def ask(_: timedelta) -> HookAnswer:
        return left.pop(0) if len(left) > 1 else left[0]

    asking = asyncio.ensure_future(wait_for_hook(Hook.VALIDATE, timeout, ask, clock))
    await clock.advance(timeout)
    return await asking


OK, LATER = HookAnswer(200, None, 0), HookAnswer(503, None, 0)
REFUSED, BROKEN, LATE = (HookAnswer(0, failure, 0) for failure in ("refused", "broken", "timeout"))


async def test_an_application_that_still_starts_is_asked_again() -> None:
    assert await ask_with(REFUSED, BROKEN, LATER, LATER, OK) == 5


async def test_a_held_request_uses_up_the_timeout() -> None:
    with pytest.raises(BuildFailed, match=r"^Validate hook invocation timed out after PT1M$"):
        await ask_with(LATE)


async def test_an_application_that_never_listens_times_out() -> None:
    with pytest.raises(BuildFailed, match=r"^Validate hook invocation timed out after PT10M$"):
        await ask_with(REFUSED, timeout=timedelta(minutes=10))


@pytest.mark.parametrize(("status", "kind"), [
    (400, "a client error (HTTP 4xx)"), (500, "a server error (HTTP 5xx)"), (302, "an HTTP 302"),
])
async def test_any_other_answer_fails_at_once(status: int, kind: str) -> None:
    with pytest.raises(BuildFailed) as failure:
        await ask_with(HookAnswer(status, None, 0), OK)
    assert str(failure.value) == f"Validate hook check failed: the application returned {kind} response"
