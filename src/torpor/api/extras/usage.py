"""What was used, and what the same would cost at AWS's prices."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from torpor.api.errors import Answer
from torpor.api.extras.request import PREFIX, Extra, ExtraRoute, json_answer, plain
from torpor.api.operations.registry import JsonObject
from torpor.model.errors import Invalid
from torpor.model.usage import Amounts, Prices

KINDS: Final = ("microvm", "image", "account", "day")
DEFAULT_SPAN: Final = timedelta(days=30)


async def usage(extra: Extra) -> Answer:
    """`by` microvm, image, account or day; from the UTC day of `since` (epoch seconds) on, 30 days by default."""
    await extra.call.authorize("torpor:GetUsage")
    by, since = extra.query.get("by", "image"), extra.whole_number("since")
    if by not in KINDS:
        raise Invalid(f"by must be one of {', '.join(KINDS)}")
    caller, control = extra.call.caller, extra.call.control
    try:
        begin = extra.clock.now() - DEFAULT_SPAN if since is None else datetime.fromtimestamp(since, UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise Invalid("since must be a time in seconds") from error
    found = await control.metering.report(caller.account, caller.region, begin, by)
    total = Amounts()
    for _, _, amounts in found:
        total.add(amounts)
    items = [{by: name, **({"imageArn": image} if image else {}), **_told(amounts, control.prices)}
             for name, image, amounts in found]  # fmt: skip
    return json_answer({
        "since": begin.strftime("%Y-%m-%d"), "by": by, "items": items, "total": _told(total, control.prices),
        "prices": plain(control.prices),
    })


def _told(amounts: Amounts, prices: Prices) -> JsonObject:
    rounded = {name: round(value, 6) for name, value in plain(amounts).items()}
    return {**rounded, "awsDollars": round(prices.of(amounts), 9),
            "savedDollars": round(prices.saved_by_sleep(amounts), 9)}  # fmt: skip


ROUTES: Final[tuple[ExtraRoute, ...]] = (("GET", f"{PREFIX}/usage", usage),)
