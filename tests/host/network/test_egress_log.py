"""The log of what was asked for and refused stays small and says enough."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from torpor.host.network import egress_log
from torpor.host.network.egress_log import LINES, EgressLog
from torpor.host.network.names import Asked
from torpor.model.clock import VirtualClock


def lines(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / "egress.log").read_text().splitlines()]


def test_a_line_says_who_wanted_what_and_what_became_of_it(tmp_path: Path) -> None:
    log = EgressLog(tmp_path / "logs", VirtualClock())
    log.told("microvm-1", Asked("dns", "evil.example", False, "not on the list"))
    log.told("microvm-2", Asked("tls", "pypi.org", True))
    log.close()
    first, second = lines(tmp_path / "logs")
    assert {name: first[name] for name in ("microvm_id", "how", "name", "allowed", "why")} == {
        "microvm_id": "microvm-1", "how": "dns", "name": "evil.example", "allowed": False, "why": "not on the list"}
    assert str(first["at"]).endswith("+00:00")
    assert (second["microvm_id"], second["allowed"], "why" in second) == ("microvm-2", True, False)


async def test_a_flood_of_one_microvm_is_counted_and_does_not_hide_the_others(tmp_path: Path) -> None:
    clock = VirtualClock()
    log = EgressLog(tmp_path, clock)
    for number in range(LINES + 100):
        log.told("loud", Asked("dns", f"{number}.example", False))
    log.told("quiet", Asked("dns", "a.example", False))
    await clock.advance(timedelta(seconds=2))
    log.told("loud", Asked("dns", "later.example", False))
    log.close()
    found = lines(tmp_path)
    assert len([line for line in found if line["microvm_id"] == "loud" and "name" in line]) == LINES + 1
    assert [line["left_out"] for line in found if "left_out" in line] == [100]
    assert [line["name"] for line in found if line["microvm_id"] == "quiet"] == ["a.example"]


def test_the_files_are_few_and_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress_log, "LARGEST", 10_000)
    monkeypatch.setattr(egress_log, "LINES", 10_000)
    log = EgressLog(tmp_path, VirtualClock())
    for number in range(2_000):
        log.told("microvm-1", Asked("dns", f"{number}.example", False))
    log.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["egress.log", "egress.log.1", "egress.log.2", "egress.log.3"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 40_000
