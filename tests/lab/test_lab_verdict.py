"""What a run of the lab is worth when tests fail, when the emulated machine goes down, and when it never came up."""

from __future__ import annotations

import argparse
import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from tools.lab import __main__ as lab
from tools.lab.inside import BEGINS, OUTCOMES

from torpor.model.errors import SetupFailed

PASSES = "tests/vmm/test_contract.py::test_a_vm_boots[firecracker] PASSED [ 50%]"
FAILS = "tests/vmm/test_contract.py::test_a_vm_boots[firecracker] FAILED [ 50%]"
PANICS = "[   90.1] Kernel panic - not syncing: Fatal exception in interrupt"
JUNIT = '<testsuites><testsuite><testcase name="boots"/></testsuite></testsuites>'


@dataclass
class FakeMachine:
    """Each start says its lines; one that ends with a code has come to its end, an exception is QEMU's."""

    folder: Path
    starts: list[tuple[list[str], int | Exception | None]]
    begun: int = 0
    results: Path = field(init=False)

    def __post_init__(self) -> None:
        self.results = self.folder / "results.tar"

    async def run(self, on_line: Callable[[str], None], timeout: float) -> None:
        lines, end = self.starts[self.begun]
        self.begun += 1
        for line in lines:
            on_line(line)
        self.results.write_bytes(b"")
        if isinstance(end, Exception):
            raise end
        if end is not None:
            made = self.folder / "made"
            made.mkdir(exist_ok=True)
            parts = [{"name": "firecracker", "code": end, "seconds": 1.0}]
            (made / OUTCOMES).write_text(json.dumps({"facts": {}, "parts": parts}))
            (made / "firecracker.xml").write_text(JUNIT)
            with tarfile.open(self.results, "w") as archive:
                archive.add(made, ".")


def proven(monkeypatch: pytest.MonkeyPatch, folder: Path, *starts: tuple[list[str], int | Exception | None]) -> int:
    machine = FakeMachine(folder, list(starts))
    monkeypatch.setattr(lab, "_load", lambda *_: None)
    options = argparse.Namespace(only=["firecracker"], results=folder / "out", timeout=20.0)
    code = lab._prove(cast(Any, machine), options)
    assert machine.begun == len(starts)
    return code


BEGAN = [f"{BEGINS}engine tests"]
WENT_DOWN = ([*BEGAN, PASSES, PANICS], None)


def test_a_run_that_comes_to_its_end_is_proven(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert proven(monkeypatch, tmp_path, ([*BEGAN, PASSES], 0)) == 0


@pytest.mark.parametrize("fall", [WENT_DOWN, ([*BEGAN, PASSES], SetupFailed("qemu: signal 11"))])
def test_a_machine_that_went_down_is_started_again(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fall: tuple[list[str], None]) -> None:
    assert proven(monkeypatch, tmp_path, fall, ([*BEGAN, PASSES], 0)) == 0


def test_one_that_goes_down_each_time_proves_nothing(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert proven(monkeypatch, tmp_path, WENT_DOWN, WENT_DOWN) == 1
    assert "went down each time" in capsys.readouterr().out


def test_a_test_that_failed_before_the_machine_went_down_is_a_failure(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert proven(monkeypatch, tmp_path, ([*BEGAN, FAILS, PANICS], None), ([*BEGAN, PASSES], 0)) == 1
    assert "a test failed before" in capsys.readouterr().out


def test_a_part_that_ends_badly_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert proven(monkeypatch, tmp_path, ([*BEGAN, PASSES], 1)) == 1


def test_a_machine_that_never_came_up_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SetupFailed, match="no such disk"):
        proven(monkeypatch, tmp_path, ([], SetupFailed("qemu: no such disk")))
