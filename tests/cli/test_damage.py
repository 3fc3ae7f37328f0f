from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from support.terminal import Torpor, assert_as_expected
from torpor.cli import gc, machine

LEAKS: list[dict[str, Any]] = [
    {"kind": "slot", "name": "torpor-0123-7", "detail": "a network namespace", "bytes": 0, "isRemovable": True},
    {"kind": "file", "name": "/data/x", "detail": "", "bytes": 8192, "isRemovable": True},
    {"kind": "damaged files", "name": "/data/gen-3", "detail": "memory differs", "bytes": 0, "isRemovable": False},
]


def test_doctor_tells_leaks_and_damage_apart_and_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def nothing(_: Any) -> list[Any]:
        return []

    monkeypatch.setattr(machine, "examine", nothing)
    monkeypatch.setattr(machine, "check_setup", nothing)
    monkeypatch.setattr(machine, "engine_findings", nothing)
    monkeypatch.setattr(gc, "leaks_of", lambda _: LEAKS)
    assert_as_expected("doctor-leaks", Torpor(tmp_path).right("doctor").output, data=tmp_path)
