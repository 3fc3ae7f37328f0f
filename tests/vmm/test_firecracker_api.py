"""What is asked of Firecracker's API, and what its answers are taken for."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.played_firecracker import NO_CONTENT, Played, answer, in_state, played_firecracker
from torpor.model.errors import VmmFailed
from torpor.vmm.firecracker_api import ApiRefused, BlockDevice, FirecrackerApi, MachineConfig, State


@pytest.fixture
async def played(tmp_path: Path) -> AsyncIterator[Played]:
    async with played_firecracker(tmp_path / "s") as world:
        yield world


@pytest.fixture
def api(tmp_path: Path) -> FirecrackerApi:
    return FirecrackerApi(tmp_path / "s")


async def test_a_request_says_what_it_means_and_no_content_is_success(played: Played, api: FirecrackerApi) -> None:
    played.answers += [NO_CONTENT, NO_CONTENT, NO_CONTENT]
    await api.set_machine(MachineConfig(2, 512))
    await api.add_drive(BlockDevice("drive0", "/drive0", is_read_only=True))
    await api.load_snapshot(Path("/device"), Path("/memory"), 5)
    assert played.asked == [
        ("PUT /machine-config", {"vcpu_count": 2, "mem_size_mib": 512, "smt": False}),
        ("PUT /drives/drive0", {"drive_id": "drive0", "path_on_host": "/drive0", "is_read_only": True,
                                "is_root_device": False}),
        ("PUT /snapshot/load", {"snapshot_path": "/device", "resume_vm": False,
                                "mem_backend": {"backend_type": "File", "backend_path": "/memory"}}),
    ]  # fmt: skip


@pytest.mark.parametrize("state", State)
async def test_the_state_is_read_from_the_answer(played: Played, api: FirecrackerApi, state: State) -> None:
    played.answers.append(in_state(str(state)))
    assert await api.state() is state


@pytest.mark.parametrize("state", ["Resumed", "paused", None, 1, ["Paused"]])
async def test_a_state_that_nobody_knows_is_a_failure_that_names_it(
    played: Played, api: FirecrackerApi, state: object
) -> None:
    played.answers.append(in_state(state))
    with pytest.raises(VmmFailed, match=re.escape(f"its VM is {state!r}, a state nobody knows")):
        await api.state()


@pytest.mark.parametrize("content", [NO_CONTENT, answer(200, '{"id": "x"}')], ids=["empty", "without"])
async def test_an_answer_without_a_state_is_a_failure(played: Played, api: FirecrackerApi, content: bytes) -> None:
    played.answers.append(content)
    with pytest.raises(VmmFailed, match="did not say in which state"):
        await api.state()


async def test_a_refusal_has_firecrackers_own_words(played: Played, api: FirecrackerApi) -> None:
    played.answers.append(answer(400, '{"fault_message": "The kernel file cannot be opened"}'))
    with pytest.raises(ApiRefused, match=r"refused PUT /actions \(400\): The kernel file cannot be opened"):
        await api.start(5)


@pytest.mark.parametrize("body", ["{}", '{"fault_message": null}', '{"fault_message": ["no"]}'])
async def test_a_refusal_without_words_is_a_refusal(played: Played, api: FirecrackerApi, body: str) -> None:
    played.answers.append(answer(400, body))
    with pytest.raises(ApiRefused, match=r"\(400\): without saying why"):
        await api.start(5)


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense\r\n\r\n", answer(200, "{"), answer(200, "[1]"), b"HTTP/1.1 200 \r\nContent-Length: 9\r\n\r\n{}"],
    ids=["closed", "no HTTP", "no JSON", "no object", "cut short"],
)
async def test_what_is_no_answer_is_a_failure_that_names_the_request(
    played: Played, api: FirecrackerApi, content: bytes
) -> None:
    played.answers.append(content)
    with pytest.raises(VmmFailed, match="asked to GET /"):
        await api.state()


async def test_silence_ends_at_the_deadline(played: Played, api: FirecrackerApi) -> None:
    played.answers.append(None)
    with pytest.raises(VmmFailed, match=r"did not answer PATCH /vm within 0.05 s"):
        await api.pause(0.05)


async def test_an_endless_answer_is_given_up(played: Played, api: FirecrackerApi) -> None:
    played.answers.append(answer(200, " " * (2 << 20)))
    with pytest.raises(VmmFailed):
        await api.state()


async def test_nobody_there_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(VmmFailed, match="could not be asked"):
        await FirecrackerApi(tmp_path / "none").state()
