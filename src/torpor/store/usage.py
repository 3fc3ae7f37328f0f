"""What an account uses of its limits, counted from the tables of the nouns."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, func, select

from torpor.model.microvm import MicrovmState
from torpor.store.microvms import microvms

_ENDED: Final = MicrovmState.TERMINATED.value


def microvm_memory(connection: Connection, account: str, region: str) -> int:
    """Configured memory in MiB of all microVMs that are not TERMINATED."""
    query = select(func.coalesce(func.sum(microvms.c.memory_mib), 0)).where(
        microvms.c.account == account, microvms.c.region == region, microvms.c.state != _ENDED
    )
    return int(connection.execute(query).scalar_one())


def suspended(connection: Connection, account: str, region: str) -> tuple[int, int]:
    """How many microVMs are SUSPENDED, and their configured memory in MiB."""
    query = select(func.count(), func.coalesce(func.sum(microvms.c.memory_mib), 0)).where(
        microvms.c.account == account,
        microvms.c.region == region,
        microvms.c.state == MicrovmState.SUSPENDED.value,
    )
    found = connection.execute(query).one()
    return int(found[0]), int(found[1])
