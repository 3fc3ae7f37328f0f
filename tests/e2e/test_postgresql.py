"""The same service with PostgreSQL as its database, where this machine has one; it is started for the tests alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from support.world import World, free_ports, start_service, stop_service
from torpor.cli.connection import Connection
from torpor.ready import read_service

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
NOBODY = "postgres"
"""PostgreSQL does not run as root; its package makes this user."""
AT_ONCE = 30
IDLE = {"maxIdleDurationSeconds": 900, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True}

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.skipif(not PROGRAMS or os.geteuid() != 0, reason="PostgreSQL's server is not installed, or not root"),
]


@pytest.fixture(scope="module")
def database_url() -> Iterator[str]:
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="torpor-pg-", dir="/tmp") as name:
        place = Path(name)
        shutil.chown(place, NOBODY)
        as_nobody("initdb", "--pgdata", place / "data", "--auth", "trust", "--no-sync", "--encoding", "UTF8")
        control = ("pg_ctl", "--pgdata", place / "data", "--wait", "--silent")
        options = f"-p {port} -k {place} -c listen_addresses=127.0.0.1"
        as_nobody(*control, "--log", place / "log", "--options", options, "start")
        try:
            as_nobody("createdb", "--host", place, "--port", port, "torpor")
            yield f"postgresql+psycopg://{NOBODY}@127.0.0.1:{port}/torpor"
        finally:
            as_nobody(*control, "--mode", "fast", "stop")


def as_nobody(program: str, *words: object) -> None:
    command = ["runuser", "-u", NOBODY, "--", str(PROGRAMS[0] / program), *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60, cwd="/")


def begin(folder: Path, database_url: str, ports: Sequence[int] = ()) -> World:
    process, ready = start_service("simulated", folder, f'database = "{database_url}"\n', ports=ports)
    return World("simulated", folder, Connection(**asdict(read_service(ready))), process)


def test_a_service_on_postgresql_serves_and_survives_being_killed(database_url: str, tmp_path: Path) -> None:
    world = begin(tmp_path, database_url)
    try:
        image = world.image("plain")
        with world.microvm(idlePolicy=IDLE) as vm:
            vm.http.put("/values/known", content="before")
            vm.suspend()
            launch_many_and_page_through_them(world, image)
            stop_service(world.process, signal.SIGKILL)
            ports = [int(url.rpartition(":")[2]) for url in (world.service.api_url, world.service.s3_url)]
            begun = begin(tmp_path, database_url, [*ports, world.service.endpoint_port])
            world.process = begun.process
            assert vm.http.get("/values/known").text == "before"
            done = [entry["action"] for entry in vm.timeline() if not entry["step"]]
            assert done == ["launch", "suspend", "resume"]
    finally:
        stop_service(world.process)


def launch_many_and_page_through_them(world: World, image: str) -> None:
    def launch(number: int) -> str:
        answer = world.client.run_microvm(imageIdentifier=image, clientToken=f"token-of-{number % (AT_ONCE // 2)}")
        return str(answer["microvmId"])

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(launch, range(AT_ONCE)))
    assert len(set(made)) == AT_ONCE // 2  # each token twice
    with pytest.raises(ClientError, match="already used with different parameters"):
        world.client.run_microvm(imageIdentifier=image, clientToken="token-of-1", maximumDurationInSeconds=100)
    pages = world.client.get_paginator("list_microvms").paginate(PaginationConfig={"PageSize": 4})
    listed = [each["microvmId"] for page in pages for each in page["items"]]
    assert len(listed) == len(set(listed))
    assert set(made) <= set(listed)
    for microvm_id in set(made):
        world.client.terminate_microvm(microvmIdentifier=microvm_id)
