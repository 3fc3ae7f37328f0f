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
    return json_answer({"stats": await extra.call.control.host.stats()})


ROUTES: Final[tuple[ExtraRoute, ...]] = (
    ("GET", f"{PREFIX}/limits", limits),
    ("GET", f"{PREFIX}/stats", stats),
)
