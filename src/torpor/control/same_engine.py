"""Holds a database and its machine together: with another engine, living microVMs would be taken for dead and ended."""

from __future__ import annotations

import logging
from typing import Final

from sqlalchemy import Connection

from torpor.model.errors import SetupMissing
from torpor.model.microvm import MicrovmState
from torpor.store import microvms, notes
from torpor.store.database import Database

log: Final = logging.getLogger(__name__)
NOTE: Final = "engine"
SIMULATED: Final = "simulated"


async def check_engine(database: Database, engine: str) -> None:
    """Note the engine; before the machine is touched.

    Raises:
        SetupMissing: microVMs of another engine live. Those that sleep may stay when both are real: they are tried with
            this engine when somebody wakes them, and say why that fails.
    """

    def look(connection: Connection) -> tuple[str | None, int, int]:
        before = notes.read(connection, NOTE)
        lives = microvms.live(connection) if before not in (None, engine) else []
        asleep = sum(each.state is MicrovmState.SUSPENDED for each in lives)
        if not lives:
            notes.replace(connection, NOTE, engine)
        return before, len(lives), asleep

    before, living, asleep = await database.write(look)
    if not living:
        return
    if living > asleep or SIMULATED in (before, engine):
        raise SetupMissing(
            f"{living} microVMs of this data directory live with the engine {before}, which {engine} cannot take over",
            f"Start with --engine {before}; terminate them there if they are not needed.")
    log.warning("%d microVMs were suspended with the engine %s; they may not wake with %s", asleep, before, engine)
