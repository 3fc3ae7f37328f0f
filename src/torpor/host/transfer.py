"""A host's part of exports and imports, as others see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol


class Transfers(Protocol):
    async def facts(self) -> dict[str, Any]:
        """What of this machine decides whether a snapshot made here runs elsewhere; see `exports.why_not`."""
        ...

    @property
    def place(self) -> Path:
        """The directory in which stages are made."""
        ...

    async def stage(self, what: str, stage: str) -> Path:
        """Put the files of `snapshot:<name>`, or of `microvm:<id>` as it was saved last, into a stage.

        Raises NotFound, SnapshotDamaged.
        """
        ...

    async def take(self, stage: str, what: str) -> None:
        """Make the files of a stage what the name says; the stage is gone then. Raises ArchiveDamaged, NotFound."""
        ...
