"""More about microVMs than AWS tells: all of them with their endpoints, each one's timeline and lines."""

from __future__ import annotations

from typing import Final

from torpor.api.errors import Answer
from torpor.api.extras.logs import stream_of
from torpor.api.extras.request import PREFIX, Extra, ExtraRoute, json_answer, plain
from torpor.api.operations.microvm import describe
from torpor.api.operations.registry import JsonObject
from torpor.api.streaming import Stream
from torpor.model.errors import Invalid, NotFound
from torpor.model.ids import MicrovmId
from torpor.model.logs import microvm_stream
from torpor.model.microvm import Microvm, MicrovmState
from torpor.model.paging import PageRequest


async def list_microvms(extra: Extra) -> Answer:
    query, size = extra.query, extra.whole_number("maxResults")
    if size is not None and not 1 <= size <= 50:
        raise Invalid("maxResults must be between 1 and 50")
    page = await extra.call.control.microvms.list(
        extra.call.caller, query.get("imageIdentifier"), query.get("imageVersion"),
        PageRequest(size, query.get("nextToken")))
    return json_answer({"items": [_whole(extra, one) for one in page.items], "nextToken": page.cursor})


async def timeline(extra: Extra) -> Answer:
    entries = await extra.call.control.microvms.timeline(extra.call.caller, _id(extra))
    return json_answer({"items": list(entries)})


async def why_awake(extra: Extra) -> Answer:
    found = await extra.call.control.wakefulness.of(extra.call.caller, _id(extra))
    return json_answer(plain(found))


async def logs(extra: Extra) -> Stream:
    call = extra.call
    microvm = await call.control.microvms.get(call.caller, _id(extra))
    named = microvm_stream(microvm)
    if named is None:
        raise NotFound(f"The MicroVM {microvm.microvm_id} has its logging disabled")

    async def has_ended() -> bool:
        now = await call.control.microvms.get(call.caller, microvm.microvm_id)
        return now.state is MicrovmState.TERMINATED

    return stream_of(extra, *named, has_ended)


async def recover(extra: Extra) -> Answer:
    """Boot its disk cold; answers when it runs."""
    return json_answer(_whole(extra, await extra.call.control.microvms.recover(extra.call.caller, _id(extra))))


def _id(extra: Extra) -> MicrovmId:
    return MicrovmId(extra.labels["microvmId"])


def _whole(extra: Extra, microvm: Microvm) -> JsonObject:
    return {
        **describe(extra.call, microvm),
        "memoryInMiB": microvm.memory_mib,
        "lastActiveAt": microvm.last_active_at,
        "suspendedAt": microvm.suspended_at,
        "endsAt": microvm.ends_at,
    }


ROUTES: Final[tuple[ExtraRoute, ...]] = (
    ("GET", f"{PREFIX}/microvms", list_microvms),
    ("GET", f"{PREFIX}/microvms/{{microvmId}}/timeline", timeline),
    ("GET", f"{PREFIX}/microvms/{{microvmId}}/why-awake", why_awake),
    ("GET", f"{PREFIX}/microvms/{{microvmId}}/logs", logs),
    ("POST", f"{PREFIX}/microvms/{{microvmId}}/recover", recover),
)
