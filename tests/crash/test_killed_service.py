"""The service's process is killed with SIGKILL at sampled points, with real virtual machines, and started again.

What every single point does is in `tests/control/test_kill_nine.py`, on simulated machines.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from support.killed_service import IDLE, KilledService, killed_service
from support.real_data import REAL_DATA
from support.world import World, application_zip, eventually
from torpor.control.reasons import REBOOTED

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]
BUILD = "build/boot_builder/after"
@pytest.fixture(scope="module")
def service() -> Iterator[KilledService]:
    with killed_service("qemu", REAL_DATA) as made:
        made.start(BUILD)
        made.world.service.ask("POST", "/gc")  # what earlier runs left on the volume, which is mounted only now
        yield made


def test_a_build_that_was_cut_short_is_done_again_and_once(service: KilledService) -> None:
    world = service.world
    hooks = {"port": 8080, "microvmImageHooks": {"ready": "ENABLED", "readyTimeoutInSeconds": 60},
             "microvmHooks": {name: value for hook in ("run", "resume", "suspend", "terminate")
                              for name, value in ((hook, "ENABLED"), (f"{hook}TimeoutInSeconds", 10))}}  # fmt: skip
    uri = world.upload(application_zip())
    asked = {"name": "killed", "baseImageArn": f"arn:aws:lambda:{world.service.region}:aws:microvm-image:al2023-1",
             "buildRoleArn": f"arn:aws:iam::{world.service.account}:role/build", "codeArtifact": {"uri": uri},
             "resources": [{"minimumMemoryInMiB": 512}], "hooks": hooks, "clientToken": "killed-1"}  # fmt: skip
    service.dies(lambda client: (client.create_microvm_image(**asked), service.world.process.wait(120)))
    world = service.start()
    arn = world.client.create_microvm_image(**asked)["imageArn"]
    assert world.built(arn, "1.0")["state"] == "SUCCESSFUL"
    builds = world.client.list_microvm_image_builds(imageIdentifier=arn, imageVersion="1.0")["items"]
    assert [each["buildState"] for each in builds] == ["SUCCESSFUL"]
    world.images["hooks"] = arn
    service.agrees()


@contextlib.contextmanager
def dying_at(service: KilledService, point: str) -> Iterator[World]:
    """A service that is to die at the point, in the block; the one after it comes to rest and has what it says."""
    service.kill()
    yield service.start(point)
    service.start()
    service.rest()
    service.agrees()


@contextlib.contextmanager
def remembering(service: KilledService, point: str, what: str) -> Iterator[dict[str, Any]]:
    """One microVM whose memory holds something, before and after the service dies of `what` was asked of it."""
    with dying_at(service, point) as world:
        made = world.client.run_microvm(imageIdentifier=world.images["hooks"], idlePolicy=IDLE)["microvmId"]
        vm = service.microvm(made)
        vm.http.put("/values/x", content="kept").raise_for_status()
        if what == "resume":
            vm.suspend()
        service.dies(lambda client: getattr(client, f"{what}_microvm")(microvmIdentifier=made))
    found = service.world.client.get_microvm(microvmIdentifier=made)
    yield found
    if found["state"] != "TERMINATED":
        vm = service.microvm(made)
        assert vm.http.get("/values/x").text == "kept"
        assert vm.state == "RUNNING"
        vm.suspend()
        assert vm.http.get("/values/x").text == "kept"
        vm.terminate()
    service.agrees()


@pytest.mark.parametrize("point", ["place/restore_memory/after", "launch/run_hook/ran"])
def test_a_launch_that_was_cut_short_ends_with_one_microvm(service: KilledService, point: str) -> None:
    asked = {"imageIdentifier": service.world.images["hooks"], "idlePolicy": IDLE, "clientToken": f"run at {point}"}
    with dying_at(service, point):
        service.dies(lambda client: client.run_microvm(**asked))
    [found] = service.rest()
    # Asking again with the same token finds the one that was launched, not another.
    assert service.world.client.run_microvm(**asked)["microvmId"] == found["microvmId"]
    assert [each["microvmId"] for each in service.rest()] == [found["microvmId"]]
    vm = service.microvm(found["microvmId"])
    assert vm.http.get("/").status_code == 200
    vm.terminate()


@pytest.mark.parametrize("point", ["suspend/suspend_hook/ran", "save/save_memory/after", "suspend/save/ran",
                                   "suspend/release/before"])  # fmt: skip
def test_a_suspend_that_was_cut_short_is_finished(service: KilledService, point: str) -> None:
    with remembering(service, point, "suspend") as found:
        assert found["state"] == "SUSPENDED"


@pytest.mark.parametrize("point", ["place/unpause/after:2", "resume/restore/ran"])
def test_a_resume_that_was_cut_short_can_be_asked_for_again(service: KilledService, point: str) -> None:
    with remembering(service, point, "resume") as found:
        assert found["state"] == "SUSPENDED"


@pytest.mark.parametrize("point", ["terminate/discard/before"])
def test_a_terminate_that_was_cut_short_is_finished(service: KilledService, point: str) -> None:
    with remembering(service, point, "terminate") as found:
        assert found["state"] == "TERMINATED"


def test_running_microvms_and_open_streams_go_on_while_the_service_is_down(service: KilledService) -> None:
    world = service.world
    with world.microvm("hooks", idlePolicy=IDLE) as vm:
        vm.http.put("/values/x", content="kept")
        vmms = service.vmms()
        lines: list[tuple[float, str]] = []
        with vm.http.stream("GET", "/events?count=40&every=0.2") as stream:
            reading = threading.Thread(target=lambda: lines.extend(
                (time.monotonic(), line) for line in stream.iter_lines() if line.startswith("data")))
            reading.start()
            eventually(lambda: len(lines), lambda count: count > 2)
            killed_at = time.monotonic()
            service.kill()
            answers: list[httpx.Response] = []
            asking = threading.Thread(target=lambda: answers.append(vm.http.get("/values/x")))
            asking.start()
            time.sleep(1.0)
            down = [line for at, line in lines if at > killed_at]
            assert len(down) >= 3, "the stream goes on without the service"
            assert service.vmms() == vmms
            service.start()
            reading.join(30)
            asking.join(30)
        assert [line for _, line in lines] == [f"data: event {number}" for number in range(1, 41)]
        assert [answer.text for answer in answers] == ["kept"], "a request that came meanwhile was held, not dropped"
        assert service.vmms() == vmms
        service.agrees()
        vm.world = service.world
        vm.suspend()
        assert vm.http.get("/values/x").text == "kept"


def test_the_death_of_a_vmm_is_noticed_within_a_second(service: KilledService) -> None:
    with service.world.microvm("hooks", idlePolicy=IDLE) as vm:
        [pid] = service.vmms()
        os.kill(pid, signal.SIGKILL)
        at = time.monotonic()
        found = vm.wait("TERMINATED", "TERMINATING", timeout=10)
        seconds = time.monotonic() - at
        print(f"noticed after {seconds * 1000:.0f} ms")
        assert seconds < 1.0 + 1.0  # a second, and one for a machine that does other things too
        found = vm.wait("TERMINATED")
        assert found["stateReason"].startswith("The virtual machine ended unexpectedly: killed by signal 9 (SIGKILL)")
    service.agrees()


def test_after_a_restart_of_the_machine_what_slept_wakes_and_what_ran_says_why_it_is_gone(
        service: KilledService) -> None:
    """As far as it can be played: every process dies at once, and the machine is known by another boot."""
    world = service.world
    with world.microvm("hooks", idlePolicy=IDLE) as asleep, contextlib.suppress(httpx.HTTPError):
        asleep.http.put("/values/x", content="kept")
        asleep.suspend()
        running = world.client.run_microvm(imageIdentifier=world.images["hooks"], idlePolicy=IDLE)["microvmId"]
        eventually(lambda: world.client.get_microvm(microvmIdentifier=running)["state"], lambda s: s == "RUNNING")
        service.kill()
        for pid in service.vmms():
            os.kill(pid, signal.SIGKILL)
        with contextlib.closing(sqlite3.connect(service.data_dir / "torpor.db")) as database, database:
            database.execute("UPDATE notes SET value = 'an earlier boot' WHERE name = 'boot_id'")
        world = service.start()
        ended = eventually(lambda: world.client.get_microvm(microvmIdentifier=running),
                           lambda found: found["state"] == "TERMINATED")  # fmt: skip
        assert ended["stateReason"] == REBOOTED
        asleep.world = world
        assert asleep.state == "SUSPENDED"
        assert asleep.http.get("/values/x").text == "kept"
        service.agrees()


def _calls(vm: Any, kind: str, until: float, answers: list[int]) -> None:
    client = vm.world.service.client("lambda-microvms")
    with vm.world.http(vm.endpoint, {"X-aws-proxy-auth": vm.token()}) as http:
        while time.monotonic() < until:
            if kind == "request":
                answers.append(http.get("/values/x").status_code)
            else:
                getattr(client, f"{kind}_microvm")(microvmIdentifier=vm.microvm_id)
            time.sleep(0.05)


def test_a_storm_on_one_microvm_drops_no_request_and_loses_nothing(service: KilledService) -> None:
    with service.world.microvm("hooks", idlePolicy=IDLE) as vm:
        vm.http.put("/values/x", content="kept")
        answers: list[int] = []
        until = time.monotonic() + 12
        kinds = ["request", "request", "request", "suspend", "suspend", "resume"]
        threads = [threading.Thread(target=_calls, args=(vm, kind, until, answers)) for kind in kinds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert answers
        assert set(answers) == {200}
        assert vm.wait("RUNNING", "SUSPENDED")["state"] in ("RUNNING", "SUSPENDED")
        assert vm.http.get("/values/x").text == "kept"
        print(f"{len(answers)} requests, {sum(each['action'] == 'suspend' for each in vm.timeline())} suspend entries")
    service.agrees()


class Promises:
    """What must be true of a few microVMs whatever happens to them and to the service."""

    def __init__(self, service: KilledService, seed: int) -> None:
        self.service = service
        self.chance = random.Random(seed)
        self.values: dict[str, str] = {}
        """Of each that has not ended: what its memory holds."""
        self.told: list[str] = []

    def step(self, number: int) -> None:
        doing = self.chance.choice(["run", "write", "write", "request", "suspend", "suspend", "resume", "terminate",
                                    "kill", "kill in it", "kill in it", "kill vmm"])  # fmt: skip
        which = self.chance.choice(sorted(self.values)) if self.values else ""
        if doing == "run" or not which:
            self._run(number)
        elif doing == "write":
            self._write(which, str(number))
        elif doing == "kill":
            self._restart()
        elif doing == "kill in it":
            self._killed_in(which)
        elif doing == "kill vmm":
            self._kill_vmm(which)
        else:
            self._call(which, doing)
        self.told.append(f"{doing} {which[-6:]}")
        self._check()

    def _run(self, number: int) -> None:
        if len(self.values) < 4:
            made = self.service.world.client.run_microvm(
                imageIdentifier=self.service.world.images["hooks"], idlePolicy=IDLE, clientToken=f"random {number}")
            self.values[made["microvmId"]] = ""
            self._write(made["microvmId"], f"first {number}")

    def _write(self, which: str, value: str) -> None:
        self.service.microvm(which).http.put("/values/x", content=value).raise_for_status()
        self.values[which] = value

    def _call(self, which: str, what: str) -> None:
        if what == "request":
            assert self.service.microvm(which).http.get("/values/x").text == self.values[which]
            return
        getattr(self.service.world.client, f"{what}_microvm")(microvmIdentifier=which)
        if what == "terminate":
            del self.values[which]

    def _restart(self) -> None:
        self.service.kill()
        self.service.start()

    def _killed_in(self, which: str) -> None:
        """The service dies at some moment of something that was asked of it."""
        what = self.chance.choice(["suspend", "resume"])
        client = self.service.world.service.client("lambda-microvms", retries=0)

        def ask() -> None:
            with contextlib.suppress(BotoCoreError, ClientError):
                getattr(client, f"{what}_microvm")(microvmIdentifier=which)

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(self.chance.random() * 0.5)
        self._restart()
        asking.join(30)

    def _kill_vmm(self, which: str) -> None:
        """Of one that runs; it ends, and says how. Another VMM may be hit: which one does not matter."""
        self.service.rest()
        vmms = self.service.vmms()
        if vmms:
            os.kill(self.chance.choice(vmms), signal.SIGKILL)
            eventually(lambda: len(self.service.rest()), lambda count: count == len(self.values) - 1)
            [gone] = self.values.keys() - {each["microvmId"] for each in self.service.rest()}
            found = self.service.world.client.get_microvm(microvmIdentifier=gone)
            assert found["stateReason"].startswith("The virtual machine ended unexpectedly"), found
            del self.values[gone]

    def _check(self) -> None:
        self.service.agrees()
        found = {each["microvmId"]: each for each in self.service.rest()}
        assert found.keys() == self.values.keys(), self.told
        for which, each in found.items():
            if each["state"] == "RUNNING":
                assert self.service.microvm(which).http.get("/values/x").text == self.values[which], self.told


def test_random_operations_and_kills_lose_nothing(service: KilledService) -> None:
    """A fixed small budget; `TORPOR_TEST_REAL_STEPS` and `TORPOR_TEST_SEED` for more and others."""
    promises = Promises(service, int(os.environ.get("TORPOR_TEST_SEED", "1")))
    for number in range(int(os.environ.get("TORPOR_TEST_REAL_STEPS", "20"))):
        promises.step(number)
    for which, value in promises.values.items():
        assert service.microvm(which).http.get("/values/x").text == value, promises.told


def test_nothing_is_left_when_all_has_ended(service: KilledService) -> None:
    for each in service.rest():
        service.world.client.terminate_microvm(microvmIdentifier=each["microvmId"])
    eventually(service.microvms, lambda found: not found, 60)
    assert service.world.service.ask("GET", "/leaks")["items"] == []
    assert service.vmms() == []


