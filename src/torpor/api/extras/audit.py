"""Records of who called what, newest first, shaped as CloudTrail's."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Final

from torpor.api.errors import Answer
from torpor.api.extras.request import PREFIX, Extra, ExtraRoute, json_answer
from torpor.control.audit import Wanted
from torpor.model.errors import Invalid
from torpor.store.audit import Place

MOST: Final = 1000


async def lookup_events(extra: Extra) -> Answer:
    """Of the caller's account; `since` is epoch seconds, `failed=true` leaves refused calls alone."""
    await extra.call.authorize("torpor:LookupEvents")
    query, since, size = extra.query, extra.whole_number("since"), extra.whole_number("maxResults")
    if size is not None and not 1 <= size <= MOST:
        raise Invalid(f"maxResults must be between 1 and {MOST}")
    try:
        begin = None if since is None else datetime.fromtimestamp(since, UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise Invalid("since must be a time in seconds") from error
    wanted = Wanted(extra.call.caller.account, begin, query.get("eventName"), query.get("microvmId"),
                    query.get("failed") == "true")
    found, place = await extra.call.control.audit.lookup(wanted, _place(query.get("nextToken")), size or 50)
    return json_answer({"items": found, "nextToken": _token(place)})


def _token(place: Place | None) -> str | None:
    return None if place is None else base64.urlsafe_b64encode(f"{place.file}:{place.offset}".encode()).decode()


def _place(token: str | None) -> Place | None:
    if token is None:
        return None
    try:
        file, _, offset = base64.urlsafe_b64decode(token).decode().partition(":")
        return Place(file, int(offset))
    except ValueError as error:
        raise Invalid("nextToken is not one of ours") from error


ROUTES: Final[tuple[ExtraRoute, ...]] = (("GET", f"{PREFIX}/audit", lookup_events),)
