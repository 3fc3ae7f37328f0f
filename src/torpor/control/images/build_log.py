"""Where the lines of a build go (spec 9.1), and the other rooms' things that a build needs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

from torpor.model.arn import ImageArn
from torpor.model.ids import BuildId
from torpor.model.image import ImageVersion
from torpor.model.logs import image_group, owned


class Artifacts(Protocol):
    """Where code artifacts come from."""

    async def fetch(self, uri: str, max_bytes: int) -> bytes:
        """Raises ArtifactUnavailable with the reason for the build record."""
        ...


class Logs(Protocol):
    """Where lines go."""

    async def append(self, group: str, stream: str, lines: Sequence[tuple[datetime, str, str]]) -> None:
        """Add lines of (time, source, text), in order."""
        ...


def log_place(version: ImageVersion, build_id: BuildId) -> tuple[str, str] | None:
    """Group, as it is kept, and stream: the configured ones, else the image's group and the build's id; None when
    disabled."""
    arn = ImageArn.parse(version.image_arn)
    logging: Any = version.request.get("logging") or {}
    if "disabled" in logging and logging["disabled"] is not None:
        return None
    asked = logging.get("cloudWatch") or {}
    group = asked.get("logGroup") or image_group(arn.name)
    return owned(arn.account, arn.region, group), asked.get("logStream") or build_id
