"""A whole Torpor as users have it, which dies by SIGKILL and is started again on the same ports over what it left."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from botocore.exceptions import BotoCoreError, ClientError

from support.real_data import forget
from support.world import Microvm, World, eventually, free_ports, start_service, stop_service
from torpor.cli.connection import Connection
from torpor.host.layout import run_dir_of
from torpor.ready import read_service

DEATH_TIMEOUT = 120.0
IDLE = {"maxIdleDurationSeconds": 900, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True}


class KilledService:
    """One data directory and the services that follow each other on it."""

    def __init__(self, engine: str, data_dir: Path) -> None:
        self.engine = engine
        self.data_dir = data_dir
        self.world: World
        self._ports = free_ports(3)
        self._images: dict[str, str] = {}
        self._clients: list[httpx.Client] = []

    def start(self, crash_at: str | None = None, settings: str = "suspend_on_shutdown = false\n") -> World:
        """A new process; with `crash_at` one that kills itself at that point."""
        environment = {"TORPOR_CRASH_AT": crash_at} if crash_at else {}
        process, ready = start_service(self.engine, self.data_dir, settings, ports=self._ports,
                                       environment=environment)  # fmt: skip
        self.world = World(self.engine, self.data_dir, Connection(**asdict(read_service(ready))), process)
        self.world.images = self._images
        return self.world

    def kill(self) -> None:
        """SIGKILL, and nothing else."""
        self.world.process.kill()
        self.world.process.wait()

    def dies(self, call: Callable[[Any], object]) -> None:
        """Make a call that the service does not survive."""
        with contextlib.suppress(BotoCoreError, ClientError, httpx.HTTPError):
            call(self.world.service.client("lambda-microvms", retries=0))
        try:
            code = self.world.process.wait(DEATH_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise AssertionError("the service has not passed the point at which it was to die") from None
        assert code == -signal.SIGKILL, code

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        stop_service(self.world.process)

    def microvm(self, microvm_id: str) -> Microvm:
        """A client for one that an earlier process has made."""
        endpoint = self.world.client.get_microvm(microvmIdentifier=microvm_id)["endpoint"]
        found = Microvm(self.world, microvm_id, endpoint, httpx.Client())
        found.http.close()
        found.http = self.world.http(endpoint, {"X-aws-proxy-auth": found.token()})
        self._clients.append(found.http)
        return found

    def microvms(self) -> list[dict[str, Any]]:
        """All that are not TERMINATED."""
        return [each for each in self.world.client.list_microvms()["items"] if each["state"] != "TERMINATED"]

    def rest(self) -> list[dict[str, Any]]:
        """Wait until every microVM is in a state in which nothing is under way."""
        resting = {"RUNNING", "SUSPENDED"}
        return eventually(self.microvms, lambda found: all(each["state"] in resting for each in found))

    def agrees(self) -> None:
        """The machine has what the records say: nothing leaks, and each RUNNING microVM has one VMM."""
        running = sum(each["state"] == "RUNNING" for each in self.rest())
        assert eventually(lambda: self.world.service.ask("GET", "/leaks")["items"], lambda found: not found, 10) == []
        if self.engine != "simulated":
            assert eventually(lambda: len(self.vmms()), lambda found: found == running, 10) == running

    def vmms(self) -> list[int]:
        """Processes of VMMs that belong to this data directory."""
        word = str(run_dir_of(self.data_dir)).encode()
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (place / "cmdline").read_bytes()
                if line.split(b"\0")[0].rpartition(b"/")[2].startswith(b"qemu-system") and word in line:
                    found.append(int(place.name))
        return found


@contextlib.contextmanager
def killed_service(engine: str, data_dir: Path) -> Iterator[KilledService]:
    """Nothing runs yet; whatever runs at the end is ended in order, and leaves nothing."""
    if engine != "simulated":
        forget(data_dir)
    made = KilledService(engine, data_dir)
    try:
        yield made
    finally:
        if made.world.process.poll() is not None:
            made.start()
        for each in made.rest():
            made.world.client.terminate_microvm(microvmIdentifier=each["microvmId"])
        eventually(made.microvms, lambda found: not found, 60)
        made.stop()
        if engine != "simulated":
            forget(data_dir)
