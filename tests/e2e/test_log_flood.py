"""One microVM that writes without end costs neither the disk nor the others (spec 9.1)."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import time
from collections.abc import Iterator

import pytest

from support.terminal import TORPOR
from support.world import LOG_PACE, Microvm, World, eventually
from torpor.host.pace import BURST, LINE_COST

pytestmark = pytest.mark.timeout(600)
LINE = "0" * 1000
LINES = 24_000
# `yes` writes whole blocks, so that an emulated processor floods faster than the pace, too.
FLOOD = f"yes $(printf %0{len(LINE)}d) | head -n {LINES}; echo after the flood"


def lines_of(vm: Microvm) -> list[str]:
    return [each["text"] for each in vm.world.service.follow(f"/microvms/{vm.microvm_id}/logs")]


def followed(vm: Microvm) -> Iterator[str]:
    """Its lines as they come, without end."""
    for each in vm.world.service.follow(f"/microvms/{vm.microvm_id}/logs", follow="true"):
        yield each["text"]


def size_of_logs(world: World) -> int:
    return sum(path.stat().st_size for path in (world.data_dir / "logs").rglob("*.jsonl"))


def write(world: World, vm: Microvm, script: str) -> None:
    """Write where the application writes."""
    words = [*TORPOR, "exec", "-n", "-u", "runner", vm.microvm_id, "--", "sh", "-c", f"({script}) >/proc/1/fd/1"]
    environment = os.environ | {"TORPOR_DATA_DIR": str(world.data_dir)}
    ended = subprocess.run(words, env=environment, capture_output=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_flood_is_dropped_and_counted_and_disturbs_nobody(world: World) -> None:
    if world.engine == "simulated":
        pytest.skip("simulated applications write no floods")
    with world.microvm() as loud, world.microvm() as other:
        before, flooded = size_of_logs(world), time.monotonic()
        write(world, loud, FLOOD)
        began = time.monotonic()
        write(world, other, "echo quiet")
        eventually(lambda: lines_of(other), lambda found: "quiet" in found, 30)
        assert time.monotonic() - began < 30
        found = list(itertools.takewhile(lambda text: text != "after the flood", followed(loud)))
        # However fast or slow this machine floods: no more than a burst and the pace since then.
        taken = LOG_PACE * (BURST + time.monotonic() - flooded)
        said = [re.match(r"\((\d+) lines were dropped here\)", text) for text in found]
        dropped = [int(each[1]) for each in said if each is not None]
        kept = found.count(LINE)
        assert dropped
        assert sum(dropped) + kept == LINES
        assert kept * (len(LINE) + LINE_COST) <= taken
        assert size_of_logs(world) - before < 1.5 * taken


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
            return [text for text in lines_of(vm) if text.startswith("counted ")]

        assert eventually(counted, lambda found: len(found) >= 200, 60) == wanted
