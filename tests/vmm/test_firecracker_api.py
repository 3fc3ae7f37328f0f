"""Firecracker's API, played by a server that answers what a test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from torpor.model.errors import VmmFailed
from torpor.vmm.firecracker_api import ApiRefused, BlockDevice, FirecrackerApi, MachineConfig

NO_CONTENT = b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"


def answer(status: int, body: str) -> bytes:
    return f"HTTP/1.1 {status} \r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


@dataclass
class Played:
    api: FirecrackerApi
    answers: list[bytes | None] = field(default_factory=list)
    """None: silence; empty: the connection is closed."""
    asked: list[tuple[str, object]] = field(default_factory=list)


@pytest.fixture
async def played(tmp_path: Path) -> AsyncIterator[Played]:
    world = Played(FirecrackerApi(tmp_path / "s"))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.splitlines()
        length = next((int(line.split(":")[1]) for line in lines if line.startswith("Content-Length")), 0)
        body = json.loads(await reader.readexactly(length)) if length else None
        world.asked.append((" ".join(lines[0].split()[:2]), body))
        content = world.answers.pop(0)
        if content is None:
            await reader.read()
        else:
            for number in range(0, len(content), 7):  # answers may come in pieces
                writer.write(content[number : number + 7])
                await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, tmp_path / "s")
    yield world
    server.close()
    await server.wait_closed()


async def test_a_request_says_what_it_means_and_no_content_is_success(played: Played) -> None:
    played.answers += [NO_CONTENT, NO_CONTENT, NO_CONTENT]
    await played.api.set_machine(MachineConfig(2, 512))
    await played.api.add_drive(BlockDevice("drive0", "/drive0", is_read_only=True))
    await played.api.load_snapshot(Path("/device"), Path("/memory"), 5)
    assert played.asked == [
        ("PUT /machine-config", {"vcpu_count": 2, "mem_size_mib": 512, "smt": False}),
        ("PUT /drives/drive0", {"drive_id": "drive0", "path_on_host": "/drive0", "is_read_only": True,
                                "is_root_device": False}),
        ("PUT /snapshot/load", {"snapshot_path": "/device", "resume_vm": False,
                                "mem_backend": {"backend_type": "File", "backend_path": "/memory"}}),
    ]  # fmt: skip


async def test_the_state_is_read_from_the_answer(played: Played) -> None:
    played.answers.append(answer(200, '{"id": "x", "state": "Paused", "vmm_version": "1.12.1"}'))
    assert await played.api.state() == "Paused"


async def test_a_refusal_has_firecrackers_own_words(played: Played) -> None:
    played.answers.append(answer(400, '{"fault_message": "The kernel file cannot be opened"}'))
    with pytest.raises(ApiRefused, match=r"refused PUT /actions \(400\): The kernel file cannot be opened"):
        await played.api.start(5)


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense\r\n\r\n", answer(200, "{"), answer(200, "[1]"), b"HTTP/1.1 200 \r\nContent-Length: 9\r\n\r\n{}"],
    ids=["closed", "no HTTP", "no JSON", "no object", "cut short"],
)
async def test_what_is_no_answer_is_a_failure_that_names_the_request(played: Played, content: bytes) -> None:
    played.answers.append(content)
    with pytest.raises(VmmFailed, match="asked to GET /"):
        await played.api.state()


async def test_silence_ends_at_the_deadline(played: Played) -> None:
    played.answers.append(None)
    with pytest.raises(VmmFailed, match=r"did not answer PATCH /vm within 0.05 s"):
        await played.api.pause(0.05)


async def test_an_endless_answer_is_given_up(played: Played) -> None:
    played.answers.append(answer(200, " " * (2 << 20)))
    with pytest.raises(VmmFailed):
        await played.api.state()


async def test_nobody_there_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(VmmFailed, match="could not be asked"):
        await FirecrackerApi(tmp_path / "none").state()


