"""Makes the missing artefacts of a plan, side by side where one does not need the other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from typing import Final

from torpor.host.setup.plan import Artefact, Plan
from torpor.host.setup.progress import Progress, Report
from torpor.host.setup.shelf import Shelf, sync
from torpor.model.errors import SetupFailed, TorporError

AT_ONCE: Final = 2
"""Making one keeps a core and the network busy."""
log = logging.getLogger(__name__)


class Maker:
    """One run over one plan."""

    def __init__(self, shelf: Shelf, plan: Plan, report: Report) -> None:
        self._shelf = shelf
        self._plan = plan
        self._report = report
        self._places = asyncio.Semaphore(AT_ONCE)
        self._made = {kind: asyncio.Event() for kind in plan.artefacts}

    async def make_missing(self) -> None:
        """
        Raises:
            TorporError: of the first artefact that could not be made; the others are given up.
        """
        with first_error():
            async with asyncio.TaskGroup() as tasks:
                for kind, artefact in self._plan.artefacts.items():
                    tasks.create_task(self._one(kind, artefact), name=f"setup:{kind}")

    async def _one(self, kind: str, artefact: Artefact) -> None:
        for needed in artefact.needs:
            await self._made[needed].wait()
        if not await asyncio.to_thread(self._shelf.has, artefact.recipe):
            async with self._places:
                await self._make(artefact)
        self._made[kind].set()


    async def _make(self, artefact: Artefact) -> None:
        try:
            await make_one(self._shelf, artefact, self._report)
        except SetupFailed as failure:
            if artefact.is_needed:
                raise
            log.warning("%s", failure)
            self._report(Progress(artefact.name, f"without it: {failure}", 1.0, is_done=True))


async def make_one(shelf: Shelf, artefact: Artefact, report: Report) -> None:
    """Make an artefact anew and publish it; its outdated predecessors but one go."""
    began = time.monotonic()

    def on_fraction(fraction: float, detail: str) -> None:
        report(Progress(artefact.name, detail, min(max(fraction, 0.0), 1.0)))

    report(Progress(artefact.name, "starting"))
    with shelf.draft(artefact.recipe) as draft:
        await artefact.make(draft, on_fraction)
        # Most of the writing to the disk happens here, off the event loop.
        await asyncio.to_thread(sync, draft)
    await asyncio.to_thread(shelf.prune, artefact.recipe)
    report(Progress(artefact.name, f"in {time.monotonic() - began:.0f} s", 1.0, is_done=True))


@contextlib.contextmanager
def first_error() -> Iterator[None]:
    """Let the first error of a task group out instead of the group, where it is one of ours."""
    try:
        yield
    except BaseExceptionGroup as group:
        ours = _first(group)
        if ours is None:
            raise
        raise ours from group


def _first(group: BaseExceptionGroup[BaseException]) -> TorporError | None:
    for error in group.exceptions:
        found = _first(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, TorporError):
            return found
    return None
