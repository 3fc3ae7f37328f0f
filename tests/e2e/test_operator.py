"""What an operator does with real virtual machines: damage, recovery, moving, leaks, many cycles."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.terminal import Torpor
from support.world import REAL_ENGINE, Microvm, World, eventually

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("world", [REAL_ENGINE], indirect=True),
]
ROOT = Path(__file__).resolve().parents[2]
IDLE = {"maxIdleDurationSeconds": 900, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True}


@pytest.fixture
def torpor(world: World) -> Torpor:
    return Torpor(world.data_dir)


@pytest.fixture
def asleep(world: World) -> Iterator[Microvm]:
    """Suspended, with something in memory and something on disk."""
    with world.microvm(idlePolicy=IDLE) as vm:
        vm.http.put("/values/x", content="in memory")
        vm.http.put("/files/x", content="on disk")
        vm.suspend()
        yield vm


def generation(vm: Microvm) -> Path:
    folder = vm.world.data_dir / "volume/microvms" / vm.microvm_id
    return max(folder.glob("gen-*"), key=lambda path: int(path.name.partition("-")[2]))


def leaks(torpor: Torpor) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(torpor.right("gc", "--dry-run", "--json").stdout)["leaks"]
    return found


def test_damaged_memory_keeps_it_suspended_with_a_reason_and_recover_saves_its_files(
        asleep: Microvm, torpor: Torpor) -> None:  # fmt: skip
    saved = generation(asleep)
    eventually((saved / "checksums").exists, bool)
    with (saved / "memory").open("r+b") as file:
        file.truncate((saved / "memory").stat().st_size - 4096)
    asleep.world.client.resume_microvm(microvmIdentifier=asleep.microvm_id)
    found = eventually(asleep.describe, lambda each: bool(each.get("stateReason")))
    assert found["state"] == "SUSPENDED"
    assert "memory has " in found["stateReason"]
    told = json.loads(torpor.right("recover", asleep.microvm_id, "--json").stdout)
    assert told["state"] == "RUNNING"
    assert "memory and processes are lost" in told["stateReason"]

    def ask() -> httpx.Response:
        time.sleep(0.2)  # endpoints have a limit
        return asleep.http.get("/files/x")

    answer = eventually(ask, lambda each: each.status_code == 200, 60)
    assert answer.text == "on disk"
    assert asleep.http.get("/values/x").status_code == 404
    assert "boot_vm" in {each["step"] for each in asleep.timeline()}
    asleep.http.put("/values/y", content="again")
    asleep.suspend()
    assert asleep.http.get("/values/y").text == "again"
    assert asleep.http.get("/files/x").text == "on disk"
    assert leaks(torpor) == []


def test_a_microvm_moves_by_a_file_with_memory_and_disk(asleep: Microvm, torpor: Torpor, tmp_path: Path) -> None:
    file = tmp_path / "vm.torpor"
    started = time.monotonic()
    told = json.loads(torpor.right("export", asleep.microvm_id, file, "--json").stdout)
    copy = torpor.right("import", file, "--new-id").stdout.strip()
    print(f"exported and imported {told['dataBytes']} as {told['bytes']} bytes in {time.monotonic() - started:.1f} s")
    try:
        for path, right in (("/values/x", "in memory"), ("/files/x", "on disk")):
            assert torpor.right("curl", copy, path).stdout == right
        asleep.http.put("/values/x", content="of the original")
        assert torpor.right("curl", copy, "/values/x").stdout == "in memory"
        assert leaks(torpor) == []
    finally:
        torpor.right("terminate", copy)


def test_an_image_moves_by_a_file_and_runs(world: World, torpor: Torpor, tmp_path: Path) -> None:
    name = world.image("plain").rpartition(":")[2]
    torpor.right("export", name, tmp_path / "image.torpor")
    torpor.right("import", tmp_path / "image.torpor", "--name", "moved")
    microvm = torpor.right("run", "moved", "--json").stdout
    known = json.loads(microvm)["microvmId"]
    assert torpor.right("curl", known, "/").stdout
    torpor.right("terminate", known)
    torpor.right("delete-image", "moved")
    assert leaks(torpor) == []


def test_a_backup_of_a_running_service_restores_elsewhere_with_its_sleepers(
        asleep: Microvm, torpor: Torpor, tmp_path: Path) -> None:  # fmt: skip
    file, other = tmp_path / "backup", asleep.world.data_dir.parent / f"{asleep.world.data_dir.name}-restored"
    torpor.right("backup", file, "--json")
    again = Torpor(other)
    try:
        told = json.loads(again.right("restore", file, "--json").stdout)
        assert told["microvms"] >= 1
        before, after = generation(asleep), other / "volume/microvms" / asleep.microvm_id / generation(asleep).name
        for name in ("memory", "disk", "device", "manifest.json"):
            assert subprocess.run(["cmp", before / name, after / name], check=False).returncode == 0, name
        assert again.right("gc").stderr == "nothing to remove\n"
    finally:
        subprocess.run(["umount", other / "volume"], check=False, capture_output=True)
        subprocess.run(["rm", "-rf", "--one-file-system", other], check=True)


def test_twelve_cycles_of_the_measurement_end_without_errors_leaks_or_growth_of_files(world: World) -> None:
    words = [sys.executable, "-m", "tools.bench", "cycles", "--count", "12", "--mib", "4", "--json", "--data-dir",
             str(world.data_dir)]  # fmt: skip
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    assert (found["cycles"], found["errors"], found["leaks"], found["file_growth"]) == (12, 0, 0, 0)


def test_requests_are_answered_while_gc_looks(world: World, torpor: Torpor) -> None:
    with world.microvm(idlePolicy=IDLE) as vm:
        for _ in range(3):
            assert leaks(torpor) == []
            assert isinstance(vm.http.get("/"), httpx.Response)
            vm.suspend()
            assert leaks(torpor) == []
            vm.resume()
