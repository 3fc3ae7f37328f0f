"""Asks an application's `/ready` and `/validate` until it says 200 (spec 3.3); says in AWS's words why it did not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

from torpor.host.base import HookAnswer
from torpor.model.clock import Clock
from torpor.model.errors import BuildFailed
from torpor.model.hooks import Hook, iso_duration

RETRY_LATER: Final = 503
FIRST_PAUSE: Final = 0.1
LONGEST_PAUSE: Final = 1.0
"""Seconds between two calls; AWS's own interval is unknown (spec 15)."""

AskOnce = Callable[[timedelta], Awaitable[HookAnswer]]
"""Calls the hook once with a timeout."""


async def wait_for_hook(hook: Hook, timeout: timedelta, ask: AskOnce, clock: Clock) -> int:
    """Return how many calls it took until the application answered 200.

    A refused or broken connection is an application that still starts: it is tried again, as a 503 is.

    Raises:
        BuildFailed: with the stateReason of spec 1.9.
        GuestSilent: `ask` raised it.
    """
    ends = clock.monotonic() + timeout.total_seconds()
    pause = FIRST_PAUSE
    calls = 0
    while (left := ends - clock.monotonic()) > 0:
        calls += 1
        answer = await ask(timedelta(seconds=left))
        if answer.status == 200:
            return calls
        if answer.status not in (0, RETRY_LATER):
            raise BuildFailed(failed_check(hook, answer.status))
        left = ends - clock.monotonic()
        if answer.failure == "timeout" or left <= 0:
            break
        await clock.sleep(min(pause, left))
        pause = min(pause * 1.5, LONGEST_PAUSE)
    raise BuildFailed(f"{hook.capitalize()} hook invocation timed out after {iso_duration(timeout)}")


def failed_check(hook: Hook, status: int) -> str:
    """The stateReason for a status that is neither 200 nor 503."""
    kind = {4: "a client error (HTTP 4xx)", 5: "a server error (HTTP 5xx)"}.get(status // 100, f"an HTTP {status}")
    return f"{hook.capitalize()} hook check failed: the application returned {kind} response"
