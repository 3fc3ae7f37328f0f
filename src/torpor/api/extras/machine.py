"""What the machine has and what the account may use of it."""

from __future__ import annotations

from typing import Final

from torpor.api.errors import Answer
from torpor.api.extras.request import PREFIX, Extra, ExtraRoute, json_answer


async def limits(extra: Extra) -> Answer:
    """Each limit, its use, and what would free some."""
    await extra.call.authorize("torpor:GetLimits")
    return json_answer({"items": await extra.call.control.limits.usage(extra.call.caller)})


async def stats(extra: Extra) -> Answer:
    await extra.call.authorize("torpor:GetStats")
    control = extra.call.control
    forwarding = control.forwarding
    return json_answer({
        "stats": await control.host.stats(),
        "logForwarding": None if forwarding is None else forwarding.state(),
    })


async def leaks(extra: Extra) -> Answer:
    """What the machine has and nobody needs, and records whose part on the machine is missing."""
    await extra.call.authorize("torpor:GetLeaks")
    return json_answer({"items": await extra.call.control.leaks.find()})


async def collect_garbage(extra: Extra) -> Answer:
    """Remove what `leaks` lists, and say of each what came of it."""
    await extra.call.authorize("torpor:CollectGarbage")
    return json_answer({"items": await extra.call.control.leaks.collect()})


ROUTES: Final[tuple[ExtraRoute, ...]] = (
    ("GET", f"{PREFIX}/limits", limits),
    ("GET", f"{PREFIX}/stats", stats),
    ("GET", f"{PREFIX}/leaks", leaks),
    ("POST", f"{PREFIX}/gc", collect_garbage),
)
