"""What one Firecracker is asked for when it is paused, saved and restored, played by a server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from support.played_firecracker import NO_CONTENT, Played, answer, in_state, played_firecracker
from torpor.model.errors import SaveFailed, VmmFailed
from torpor.vmm import DEVICE_STATE, ENGINE_RECORD, MEMORY_FILE
from torpor.vmm.firecracker_api import FirecrackerApi
from torpor.vmm.firecracker_program import FirecrackerProgram
from torpor.vmm.firecracker_vmm import API_FOLDER, API_SOCKET, METRICS, FirecrackerVmm
from torpor.vmm.process_vmm import TRIES
from torpor.vmm.record import SAVED, Record
from torpor.vmm.snapshot import Maker, Shape

HERE = FirecrackerProgram(Path("/opt/firecracker"), (1, 13, 0))
OTHER_VERSION = '{"fault_message": "Invalid snapshot version: 6.0.0"}'
NO_MEMORY = '{"fault_message": "Cannot perform open on the memory backing file: Is a directory"}'


@pytest.fixture
async def played(tmp_path: Path) -> AsyncIterator[Played]:
    async with played_firecracker(tmp_path / API_FOLDER / API_SOCKET) as world:
        yield world


@pytest.fixture
def vmm(tmp_path: Path) -> FirecrackerVmm:
    return made(tmp_path, has_tap=False)


def made(run_dir: Path, *, has_tap: bool) -> FirecrackerVmm:
    nothing = cast(Any, None)
    record = Record("kvm", "1.13.0", Shape(1, 1, 0, has_tap), 0, None, 0, 0, is_shared=False)
    return FirecrackerVmm(nothing, record, run_dir, Maker("firecracker", "kvm", "x86_64", 1), nothing)


def saved_by(version: object, place: Path) -> Path:
    (place / ENGINE_RECORD).write_text(json.dumps({"version": version}))
    return place


async def test_a_running_vm_is_paused_and_a_paused_one_let_alone(played: Played, vmm: FirecrackerVmm) -> None:
    played.answers += [in_state("Running"), NO_CONTENT, in_state("Paused")]
    await vmm.pause()
    await vmm.pause()
    assert played.asked == [("GET /", None), ("PATCH /vm", {"state": "Paused"}), ("GET /", None)]


@pytest.mark.parametrize("state", ["None", "Not started", "Running"])
async def test_nothing_but_a_paused_vm_is_saved(
    played: Played, vmm: FirecrackerVmm, state: str, tmp_path: Path
) -> None:
    played.answers.append(in_state(state))
    with pytest.raises(SaveFailed, match=r"not paused|a state nobody knows"):
        await vmm.save(tmp_path)
    assert played.asked == [("GET /", None)]


async def test_a_vm_in_a_state_nobody_knows_is_not_taken_for_a_paused_one(
    played: Played, vmm: FirecrackerVmm
) -> None:
    played.answers.append(in_state(None))
    with pytest.raises(VmmFailed, match="a state nobody knows"):
        await vmm.pause()


@pytest.mark.parametrize("fault", ["Cannot save the microVM state: no", "Memory cannot be opened"])
async def test_a_refusal_in_other_words_than_those_about_memory_is_a_failed_save(
    played: Played, vmm: FirecrackerVmm, fault: str, tmp_path: Path
) -> None:
    (tmp_path / SAVED).touch()
    played.answers += [in_state("Paused"), answer(400, json.dumps({"fault_message": fault}))]
    with pytest.raises(SaveFailed, match=fault):
        await vmm.save(tmp_path)


async def test_a_device_state_that_was_not_written_is_a_failed_save(
    played: Played, vmm: FirecrackerVmm, tmp_path: Path
) -> None:
    (tmp_path / SAVED).write_text("of an earlier save")
    played.answers += [in_state("Paused"), answer(400, NO_MEMORY)]
    with pytest.raises(SaveFailed, match="wrote no device state"):
        await vmm.save(tmp_path)


@pytest.mark.parametrize(("version", "said"), [
    ("1.12.1", r"Firecracker 1\.12\.1 saved it \(Invalid snapshot version: 6\.0\.0\): set `firecracker\.path` to that"),
    ("1.13.0", r"the same version saved it \(Invalid"), ("", "which version saved it was not noted"),
    (None, "which version saved it was not noted"),
])  # fmt: skip
async def test_a_device_state_that_is_not_read_is_told_with_who_saved_it_and_what_to_do(
    played: Played, vmm: FirecrackerVmm, version: object, said: str, tmp_path: Path
) -> None:
    played.answers.append(answer(400, OTHER_VERSION))
    with pytest.raises(VmmFailed, match=said) as told:
        await vmm.load(HERE, saved_by(version, tmp_path), 5)
    assert str(told.value).startswith("Firecracker 1.13.0 (/opt/firecracker) cannot load it, ")
    assert "build the image again" in str(told.value)
    assert "torpor recover" in str(told.value)


@pytest.mark.parametrize(("counted", "tries"), [([0], 1), ([3, 1, 0], 3), ([None, 0], 2)])
async def test_memory_is_read_again_until_no_frame_came_behind_the_device_state(
    played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[int | None], tries: int
) -> None:
    into = with_frames(monkeypatch, tmp_path, [str(each) if each is not None else "emptied" for each in counted])
    played.answers += [in_state("Paused"), *[answer(400, NO_MEMORY)] * tries]
    assert await made(tmp_path, has_tap=True).save(into) == tries
    assert (into / MEMORY_FILE).read_text() == f"memory as read the {tries}. time"
    assert (into / DEVICE_STATE).read_bytes() == b"state"
    assert played.answers == []


@pytest.mark.parametrize(("line", "said"), [
    ("1", f"changed its memory while it was read, {TRIES} times"), ('"x"', "do not say how many frames"),
    ("null", "do not say how many frames"),
])  # fmt: skip
async def test_a_vm_that_is_never_quiet_or_does_not_say_is_not_saved(
    played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    into = with_frames(monkeypatch, tmp_path, [line] * TRIES)
    played.answers += [in_state("Paused"), *[answer(400, NO_MEMORY)] * TRIES]
    with pytest.raises(SaveFailed, match=said):
        await made(tmp_path, has_tap=True).save(into)
    assert list(into.iterdir()) == []


def with_frames(monkeypatch: pytest.MonkeyPatch, run_dir: Path, counted: list[str]) -> Path:
    """Each second time that metrics are written, so many frames have come; memory tells how often it was read.

    The device state is written whenever it is asked for. Where to save is what it returns.
    """
    metrics, read, flushed = run_dir / METRICS, 0, 0
    metrics.write_text('{"net": {"rx_packets_count": 7}}\n')

    async def flush(_: FirecrackerApi) -> None:
        nonlocal flushed
        flushed += 1
        frames = counted[flushed // 2 - 1] if flushed % 2 == 0 else "5"
        if frames == "emptied":
            size = metrics.stat().st_size
            metrics.write_text("")
            with metrics.open("r+b") as file:  # Firecracker writes where it was
                file.seek(size + 100)
                file.write(b'{"net": {"rx_packets_count": 0}}\n')
        else:
            with metrics.open("a") as file:
                file.write(f'{{"net": {{"rx_packets_count": {frames}}}}}\n')

    def save_memory(_memory: object, into: Path, _checkpoint: object) -> int:
        nonlocal read
        read += 1
        into.write_text(f"memory as read the {read}. time")
        return read

    monkeypatch.setattr(FirecrackerApi, "flush_metrics", flush)
    monkeypatch.setattr("torpor.vmm.process_vmm.save_memory", save_memory)
    monkeypatch.setattr(FirecrackerVmm, "_memory", lambda _: None)
    monkeypatch.setattr("torpor.vmm.firecracker_vmm.os.truncate", lambda path, _: path.write_bytes(b"state"))
    (run_dir / "into").mkdir()
    return run_dir / "into"
