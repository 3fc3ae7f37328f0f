"""What the microVM half of `control` asks of the image half; nothing more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import Connection

from torpor.control.paging import Cursors
from torpor.model.caller import Caller
from torpor.model.egress import Egress
from torpor.model.ids import AccountId
from torpor.model.image import Image, ImageVersion


class Images(Protocol):
    async def runnable(self, caller: Caller, arn: str, version: str | None, /) -> tuple[Image, ImageVersion, str]:
        """The image, the version to launch and its snapshot. Raises NotFound."""
        ...

    def remembered(self, caller: Caller, arn: str, version: str | None, /) -> tuple[Image, ImageVersion, str] | None:
        """What `runnable` gave before, which may be outdated."""
        ...

    def admit_run(
        self, connection: Connection, image: Image, version: ImageVersion, pinned: str | None, /
    ) -> None:
        """Inside the transaction that makes the microVM. Raises NotFound, or Outdated for another answer than then."""
        ...


class Connectors(Protocol):
    async def ingress(self, caller: Caller, asked: Sequence[str] | None, /) -> tuple[str, ...]:
        """Those to bind. Raises Invalid."""
        ...

    async def egress(self, caller: Caller, asked: Sequence[str] | None,
                     default: Sequence[str] | None = None, /) -> tuple[str, ...]:
        """The one to bind. Raises Invalid."""
        ...

    lost: Callable[[str], Awaitable[None]]
    """Called with the ARN, without a version, of a connector that is deleted."""

    async def outward(self, arns: Sequence[str], /) -> Egress:
        """What a microVM that is bound to these may reach."""
        ...


@dataclass(frozen=True, slots=True)
class Neighbours:
    images: Images
    connectors: Connectors
    admit_memory: Callable[[Connection, AccountId, str, int], None]
    """Raises QuotaExceeded when so many MiB more would be too much; inside the transaction that makes the microVM."""
    authorize: Callable[[Caller, str, str | None], Awaitable[None]]
    """Raises Denied when the caller may not do this (action, resource ARN)."""
    cursors: Callable[[], Cursors]
