"""One microVM that writes without end costs neither the disk nor the others (spec 9.1)."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from support.terminal import TORPOR
from support.world import Microvm, World, eventually

pytestmark = pytest.mark.timeout(300)
FLOOD = "head -c 16000000 /dev/zero | tr '\\0' x | fold -w 1000 >/proc/1/fd/1; echo; echo after the flood"


def lines_of(vm: Microvm, after: int = 0) -> Iterator[dict[str, Any]]:
    return vm.world.service.follow(f"/microvms/{vm.microvm_id}/logs", after=after)


def write(world: World, vm: Microvm, script: str) -> None:
    """Write where the application writes."""
    words = [*TORPOR, "exec", "-n", "-u", "runner", vm.microvm_id, "--", "sh", "-c", f"({script}) >/proc/1/fd/1"]
    environment = os.environ | {"TORPOR_DATA_DIR": str(world.data_dir)}
    ended = subprocess.run(words, env=environment, capture_output=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_flood_is_dropped_and_counted_and_disturbs_nobody(world: World) -> None:
    if world.engine == "simulated":
        pytest.skip("simulated applications write no floods")
    with world.microvm() as loud, world.microvm() as other:
        write(world, loud, FLOOD)
        began = time.monotonic()
        write(world, other, "echo quiet")
        eventually(lambda: [each["text"] for each in lines_of(other)], lambda found: "quiet" in found, 30)
        assert time.monotonic() - began < 30
        found = eventually(lambda: list(lines_of(loud)), lambda found: found[-1]["text"] == "after the flood", 90)
        said = [re.match(r"\((\d+) lines were dropped here\)", each["text"]) for each in found]
        dropped = [int(each[1]) for each in said if each is not None]
        kept = sum(each["text"].startswith("xxxx") for each in found)
        assert dropped
        assert sum(dropped) + kept == 16_000
        assert kept < 14_000
        size = sum(path.stat().st_size for path in (world.data_dir / "logs").rglob("*.jsonl"))
        assert size < 20 * 1024 * 1024


def test_no_line_is_lost_over_a_sleep(world: World) -> None:
    if world.engine == "simulated":
        pytest.skip("simulated applications write nothing by themselves")
    with world.microvm() as vm:
        write(world, vm, "i=0; while [ $i -lt 200 ]; do echo counted $i; i=$((i+1)); sleep 0.02; done &")
        for _ in range(2):
            time.sleep(0.5)
            vm.suspend()
            vm.resume()
        wanted = [f"counted {number}" for number in range(200)]

        def counted() -> list[str]:
            return [each["text"] for each in lines_of(vm) if each["text"].startswith("counted ")]

        assert eventually(counted, lambda found: len(found) >= 200, 60) == wanted
