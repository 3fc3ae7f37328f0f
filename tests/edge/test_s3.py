"""rclone as the store behind the embedded S3: who reaches it, and its life."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from support.edge_world import free_port
from torpor.config import Config, S3Settings
from torpor.edge.s3 import EmbeddedS3
from torpor.model.errors import SetupFailed


@pytest.fixture
async def s3(tmp_path: Path) -> AsyncIterator[EmbeddedS3]:
    async with EmbeddedS3(Config(s3=S3Settings(port=free_port())), tmp_path, tmp_path / "run") as running:
        yield running


async def ask(s3: EmbeddedS3, method: str, path: str, body: bytes = b"") -> int:
    transport = httpx.AsyncHTTPTransport(uds=str(s3.socket))
    async with httpx.AsyncClient(transport=transport, trust_env=False) as http:
        return (await http.request(method, f"http://s3{path}", content=body)).status_code


async def test_objects_are_files_and_its_socket_is_the_services_alone(s3: EmbeddedS3, tmp_path: Path) -> None:
    assert await ask(s3, "PUT", "/artifacts") == 200
    assert await ask(s3, "PUT", "/artifacts/app/code.zip", b"PK") == 200
    assert (tmp_path / "s3/artifacts/app/code.zip").read_bytes() == b"PK"
    assert stat.S_IMODE(s3.socket.parent.stat().st_mode) == 0o700
    arguments = Path(f"/proc/{s3.pid}/cmdline").read_bytes()
    assert b"unix://" in arguments
    await s3.stop()
    assert not s3.socket.parent.exists()


async def test_it_is_started_again_when_it_dies_and_keeps_its_objects(s3: EmbeddedS3) -> None:
    assert await ask(s3, "PUT", "/kept") == 200
    killed = s3.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    async with asyncio.timeout(10):
        while s3.pid in (None, killed):
            await asyncio.sleep(0.02)
        while True:
            try:
                assert await ask(s3, "HEAD", "/kept") == 200
                break
            except httpx.TransportError:
                await asyncio.sleep(0.05)


async def test_a_taken_port_is_said(s3: EmbeddedS3, tmp_path: Path) -> None:
    port = int(s3.url.rpartition(":")[2])
    second = EmbeddedS3(Config(s3=S3Settings(port=port)), tmp_path / "second", tmp_path / "second/run")
    with pytest.raises(SetupFailed, match="Address already in use"):
        await second.start()
    assert second.pid is None
