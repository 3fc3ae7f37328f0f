"""A thousand records, two hundred of them asleep: start, list, doctor and gc still do their work, and quickly."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from tools.bench.many import insert_all

from support.terminal import Torpor
from support.world import running_world
from torpor.config import Config
from torpor.model.ids import MicrovmId, new_endpoint_label, new_microvm_id
from torpor.model.microvm import MicrovmState
from torpor.store import Database, microvms

RECORDS = 1000
ASLEEP = 200
PATIENCE = 30.0
"""Seconds for a start that takes one on an idle machine; promised are five."""
EXAMPLE = Path(__file__).resolve().parents[2] / "examples/counter"


async def _multiply(data_dir: Path, original: MicrovmId) -> list[MicrovmId]:
    database = Database(Config(data_dir=data_dir).database_url)
    try:
        record = await database.read(lambda connection: microvms.get(connection, original))
        assert record is not None
        copies = [replace(record, microvm_id=new_microvm_id(), endpoint_label=new_endpoint_label())
                  for _ in range(RECORDS - 1)]  # fmt: skip
        saved = data_dir / "simulated/microvms"
        for each in copies[: ASLEEP - 1]:
            shutil.copy(saved / f"{original}.saved.json", saved / f"{each.microvm_id}.saved.json")
        ended = [replace(each, state=MicrovmState.TERMINATED, terminated_at=each.last_active_at)
                 for each in copies[ASLEEP - 1 :]]  # fmt: skip
        await database.write(partial(insert_all, records=[*copies[: ASLEEP - 1], *ended]))
        return [each.microvm_id for each in copies[: ASLEEP - 1]]
    finally:
        await database.close()


def test_a_thousand_records_with_two_hundred_sleepers_are_no_burden(tmp_path: Path) -> None:
    torpor = Torpor(tmp_path / "data")
    with running_world("simulated", torpor.data_dir, 'limits = {memory_mib = 0}\n'):
        torpor.right("deploy", EXAMPLE, "--quiet")
        original = torpor.right("run", "counter", "--idle", 28800).stdout.strip()
        torpor.right("curl", original, "/values/x", "-X", "PUT", "-d", "41")
        torpor.right("suspend", original)
    copies = asyncio.run(_multiply(torpor.data_dir, MicrovmId(original)))
    began = time.monotonic()
    with running_world("simulated", torpor.data_dir, 'limits = {memory_mib = 0}\n'):
        assert time.monotonic() - began < PATIENCE
        listed = json.loads(torpor.right("ls", "--json").stdout)
        assert {each["state"] for each in listed} == {"SUSPENDED"}
        assert len(listed) == ASLEEP
        assert len(json.loads(torpor.right("ls", "--all", "--json").stdout)) == RECORDS
        assert torpor.right("gc").stderr == "nothing to remove\n"
        assert torpor.right("curl", copies[-1], "/values/x").stdout == "41"
    assert torpor.right("gc", "--dry-run").stderr == "nothing to remove\n"
