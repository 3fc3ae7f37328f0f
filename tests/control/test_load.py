"""A service with a past: a thousand records, two hundred microVMs asleep, twenty awake."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Connection

from support.killed import ACCOUNT, CALLER, S, Service, service
from torpor.control import RunRequest
from torpor.model.ids import new_endpoint_label, new_microvm_id
from torpor.store import microvms, timeline

RECORDS, ASLEEP, AWAKE = 1000, 200, 20
START: float = 5.0
"""Promised: seconds. Measured: 0.2 (docs/promises.md)."""


async def _fill(found: Service) -> None:
    await found.build()
    await found.rest()
    [image] = await found.images()
    made = [await found.control.microvms.run(CALLER, RunRequest(str(image.arn))) for _ in range(ASLEEP + AWAKE)]
    await found.rest()
    await asyncio.gather(*(found.control.microvms.suspend(CALLER, each.microvm_id) for each in made[:ASLEEP]))
    await found.rest()

    def ended(connection: Connection) -> None:
        for number in range(RECORDS - len(made)):
            at = made[0].started_at - timedelta(minutes=number)
            one = replace(made[0], microvm_id=new_microvm_id(), endpoint_label=new_endpoint_label(), started_at=at,
                          state=S.TERMINATED, state_reason="Success.", terminated_at=at + timedelta(seconds=30))
            microvms.insert(connection, one)
            timeline.add(connection, one.microvm_id, at, "launch", CALLER.principal, steps=[("restore_memory", 0.1)])

    await found.database.write(ended)


async def test_a_start_with_a_thousand_records_is_quick_and_takes_over_all_of_them(tmp_path: Path) -> None:
    async with service(tmp_path) as found:
        await _fill(found)
    began = time.monotonic()
    async with service(tmp_path) as found:
        seconds = time.monotonic() - began
        await found.rest()
        states = [live.state for live in found.control.microvms.fleet]
        assert (states.count(S.SUSPENDED), states.count(S.RUNNING)) == (ASLEEP, AWAKE)
        assert found.control.microvms.memory_in_use(ACCOUNT, CALLER.region) == (ASLEEP + AWAKE) * 512
        woken = next(live for live in found.control.microvms.fleet if live.state is S.SUSPENDED)
        await found.control.microvms.resume(CALLER, woken.microvm_id)
        assert woken.state is S.RUNNING
    print(f"started in {seconds:.2f} s")
    assert seconds < START
