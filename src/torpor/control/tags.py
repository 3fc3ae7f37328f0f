"""Tags of images and network connectors, by ARN (spec 9.3)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from sqlalchemy import Connection

from torpor.control.connectors import Connectors
from torpor.control.images import records
from torpor.control.tag_count import check_count
from torpor.model.arn import Arn
from torpor.model.caller import Caller
from torpor.model.connector import Connector
from torpor.model.errors import NotFound, Refused
from torpor.model.image import Image
from torpor.store import Database, connectors, images


class Tags:
    def __init__(self, database: Database, of_connectors: Connectors) -> None:
        self._database = database
        self._connectors = of_connectors

    async def list(self, caller: Caller, arn: str) -> dict[str, str]:
        """Raises NotFound, Denied, Invalid."""
        return await self._database.read(lambda connection: self._find(connection, caller, arn).tags)

    async def of_resource(self, caller: Caller, arn: str) -> Mapping[str, str]:
        """For policies: `list`, but none for what has none or does not exist."""
        try:
            return await self.list(caller, arn)
        except Refused:
            return {}

    async def add(self, caller: Caller, arn: str, tags: Mapping[str, str]) -> None:
        """Merge: a key that exists gets the new value. Raises InvalidParameter, NotFound, Denied, Invalid."""

        def change(connection: Connection) -> None:
            found = self._find(connection, caller, arn)
            merged = {**found.tags, **tags}
            check_count(merged)
            _save(connection, found, merged)

        await self._database.write(change)

    async def remove(self, caller: Caller, arn: str, keys: Collection[str]) -> None:
        """Keys that are not there do not matter. Raises NotFound, Denied, Invalid."""

        def change(connection: Connection) -> None:
            found = self._find(connection, caller, arn)
            _save(connection, found, {key: value for key, value in found.tags.items() if key not in keys})

        await self._database.write(change)

    def _find(self, connection: Connection, caller: Caller, text: str) -> Image | Connector:
        arn = Arn.parse(text)
        kind = arn.resource.partition(":")[0] if arn else ""
        if kind == "microvm-image":
            return records.find_image(connection, caller, text)
        if kind == "network-connector":
            return self._connectors.find(connection, caller, text)
        raise NotFound(f"Resource not found: {text}")


def _save(connection: Connection, found: Image | Connector, tags: dict[str, str]) -> None:
    if isinstance(found, Image):
        images.save(connection, replace(found, tags=tags))
    else:
        connectors.save_tags(connection, found.id, tags)
