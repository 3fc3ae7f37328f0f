"""What a build of an image version says while it goes on, and said."""

from __future__ import annotations

from typing import Final

from torpor.api.extras.logs import stream_of
from torpor.api.extras.request import PREFIX, Extra, ExtraRoute
from torpor.api.streaming import Stream
from torpor.model.arn import ImageArn
from torpor.model.errors import NotFound
from torpor.model.ids import ImageName
from torpor.model.image import VersionState

UNFINISHED: Final = (VersionState.PENDING, VersionState.IN_PROGRESS)


async def build_logs(extra: Extra) -> Stream:
    """Lines of all builds of one version, in the order they were written."""
    call, version = extra.call, extra.labels["imageVersion"]
    caller = call.caller
    arn = str(ImageArn(caller.region, caller.account, ImageName(extra.labels["name"])))
    await call.authorize("GetMicrovmImageBuild", arn)
    named = await call.control.images.build_streams(caller, arn, version)
    if named is None:
        raise NotFound(f"Version {version} of {arn} has its logging disabled")
    group, streams = named

    async def has_ended() -> bool:
        found = await call.control.images.get_version(caller, arn, version)
        return found.state not in UNFINISHED

    if len(streams) == 1:
        return stream_of(extra, group, streams[0], has_ended)
    return stream_of(extra, group, None, has_ended, lambda line: line.stream in streams)


ROUTES: Final[tuple[ExtraRoute, ...]] = (
    ("GET", f"{PREFIX}/images/{{name}}/versions/{{imageVersion}}/logs", build_logs),
)
