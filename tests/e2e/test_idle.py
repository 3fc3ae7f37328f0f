"""What keeps a microVM awake, protocol by protocol, and what does not; to the second (spec 5.7)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

from support.shell_client import WITH_SHELL, Shell
from support.world import Microvm, World, eventually

pytestmark = pytest.mark.timeout(400)
IDLE = {"maxIdleDurationSeconds": 60, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True}
Keeping = Callable[[], None]


def why(vm: Microvm) -> dict[str, Any]:
    return vm.world.service.ask("GET", f"/microvms/{vm.microvm_id}/why-awake")  # type: ignore[no-any-return]


@contextmanager
def socket_of(vm: Microvm) -> Iterator[ClientConnection]:
    names: Any = ["lambda-microvms", f"lambda-microvms.authentication.{vm.token()}"]
    with connect(f"wss://{vm.endpoint}/socket", ssl=vm.world.tls, subprotocols=names, proxy=None,
                 ping_interval=None) as socket:  # fmt: skip
        yield socket


@contextmanager
def frames(vm: Microvm) -> Iterator[Keeping]:
    with socket_of(vm) as socket:

        def echo() -> None:
            socket.send("x")
            assert socket.recv(20) == "x"

        echo()
        yield echo


@contextmanager
def silent_socket(vm: Microvm) -> Iterator[Keeping]:
    with socket_of(vm) as socket:
        socket.send("x")
        socket.recv(20)
        yield lambda: None


@contextmanager
def requests(vm: Microvm, http2: bool = False) -> Iterator[Keeping]:
    with vm.world.http(vm.endpoint, {"X-aws-proxy-auth": vm.token()}, http2=http2) as http:

        def ask() -> None:
            assert http.get("/").status_code == 200

        ask()
        yield ask


@contextmanager
def requests_by_h2(vm: Microvm) -> Iterator[Keeping]:
    with requests(vm, http2=True) as ask:
        yield ask


@contextmanager
def silent_shell(vm: Microvm) -> Iterator[Keeping]:
    with Shell(vm) as shell:
        shell.until("λ $ ")
        yield lambda: None


@contextmanager
def typed_shell(vm: Microvm) -> Iterator[Keeping]:
    with Shell(vm) as shell:
        shell.until("λ $ ")

        def press() -> None:
            shell.type("\n")
            shell.until("λ $ ")

        yield press


KEEPS = {"frames": frames, "requests": requests, "requests-by-h2": requests_by_h2, "typed-shell": typed_shell}
DOES_NOT = {"silent-socket": silent_socket, "silent-shell": silent_shell}


def test_bytes_keep_a_microvm_awake_and_open_silent_streams_do_not(world: World) -> None:
    """All at once: on real machines each of them takes two minutes."""
    with ExitStack() as stack:
        vms = {name: stack.enter_context(world.microvm(idlePolicy=IDLE, **WITH_SHELL)) for name in KEEPS | DOES_NOT}
        keeping = {name: stack.enter_context(make(vms[name])) for name, make in (KEEPS | DOES_NOT).items()}
        for _ in range(3):
            world.pass_time(35)
            threads = [threading.Thread(target=keeping[name]) for name in KEEPS]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
        states = {name: eventually(lambda vm=vm: vm.state, lambda state: state != "SUSPENDING")  # type: ignore[misc]
                  for name, vm in vms.items()}  # fmt: skip
        assert states == {name: "RUNNING" if name in KEEPS else "SUSPENDED" for name in vms}
        assert all(why(vms[name])["reason"] == "traffic" for name in KEEPS)


def test_the_suspend_comes_in_the_second_after_the_limit(world: World) -> None:
    with world.microvm(idlePolicy=IDLE) as vm:
        vm.http.get("/")
        vm.http.close()  # a kept connection that is closed later carries no byte, and does not count either
        if world.engine != "simulated":
            time.sleep(2)
        due = why(vm)
        assert due["suspendsAt"] - due["lastActiveAt"] == pytest.approx(60, abs=0.01)
        assert due["lastByteAt"] is not None
        world.pass_time(due["suspendsAt"] - due["now"] - 2)
        assert vm.state == "RUNNING"
        world.pass_time(2.5)
        eventually(lambda: vm.state, lambda state: state == "SUSPENDED")
        (found,) = [each for each in world.service.every("/microvms") if each["microvmId"] == vm.microvm_id]
        begun = next(each["at"] for each in vm.timeline() if each["action"] == "suspend")
        assert 60 <= begun - due["lastActiveAt"] < 61.5
        assert found["suspendedAt"] >= begun


def test_why_awake_names_what_is_open_and_who_may_see_it(world: World) -> None:
    with world.microvm(idlePolicy=IDLE) as vm, silent_socket(vm):
        eventually(lambda: why(vm)["openRequests"], lambda count: count == 1)
        found = why(vm)
        assert (found["state"], found["reason"], found["maxIdleSeconds"]) == ("RUNNING", "traffic", 60)
        vm.suspend()
        found = why(vm)
        assert (found["reason"], found["suspendsAt"]) == ("asleep", None)
        assert found["autoResume"]
    assert why(vm)["reason"] == "ended"
    url = f"{world.service.api_url}/torpor/v1/microvms/{vm.microvm_id}/why-awake"
    assert httpx.get(url).status_code == 403
