"""What keeps a microVM awake, protocol by protocol, and what does not; to the second (spec 5.7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

from support.grpc_client import Stub, opened
from support.protocols import answers_http2, protocols_image
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


@contextmanager
def server_events(vm: Microvm, every: float = 0.2) -> Iterator[Keeping]:
    """The server alone sends, and goes on by itself."""
    with vm.http.stream("GET", f"/events?count=100000&every={every}") as answer:
        lines = answer.iter_lines()
        assert next(lines) == "id: 1"
        yield lambda: None


@contextmanager
def silent_events(vm: Microvm) -> Iterator[Keeping]:
    with server_events(vm, every=3600) as nothing:
        yield nothing


@contextmanager
def grpc_messages(vm: Microvm) -> Iterator[Keeping]:
    words: SimpleQueue[bytes | None] = SimpleQueue()
    host, _, port = vm.endpoint.partition(":")
    with opened(Path(vm.world.service.ca_file), host, int(port or 443), grpc) as channel:
        call = Stub(channel).chat(iter(words.get, None), metadata=(("x-aws-proxy-auth", vm.token()),), timeout=300)

        def say() -> None:
            words.put(b"x")
            assert next(call) == b"x"

        try:
            say()
            yield say
        finally:
            words.put(None)
            call.cancel()


@contextmanager
def silent_grpc(vm: Microvm) -> Iterator[Keeping]:
    with grpc_messages(vm):
        yield lambda: None


@contextmanager
def nothing_open(vm: Microvm) -> Iterator[Keeping]:
    vm.http.get("/")
    vm.http.close()  # a kept connection that is closed later carries no byte, and does not count either
    yield lambda: None


KEEPS = {"frames": frames, "requests": requests, "requests-by-h2": requests_by_h2, "typed-shell": typed_shell,
         "server-events": server_events, "grpc-messages": grpc_messages}
DOES_NOT = {"silent-socket": silent_socket, "silent-shell": silent_shell, "silent-events": silent_events,
            "silent-grpc": silent_grpc, "nothing": nothing_open}
OF_GRPC = ("grpc-messages", "silent-grpc")


def test_bytes_keep_a_microvm_awake_and_nothing_else_does_to_the_second(world: World, tmp_path: Path) -> None:
    """Every protocol at once: on real machines each of them takes a minute."""
    protocols = protocols_image(world, tmp_path)
    with ExitStack() as stack:
        vms = {name: stack.enter_context(world.microvm(
            protocols if name in OF_GRPC else "plain", idlePolicy=IDLE, **WITH_SHELL)) for name in KEEPS | DOES_NOT}
        for name in OF_GRPC:
            answers_http2(vms[name])
        keeping = {name: stack.enter_context(make(vms[name])) for name, make in (KEEPS | DOES_NOT).items()}
        world.pass_time(25)
        with ThreadPoolExecutor(len(KEEPS)) as threads:
            for done in [threads.submit(keeping[name]) for name in KEEPS]:
                done.result(30)
        for name in KEEPS:
            eventually(partial(why, vms[name]), lambda found: found["now"] - found["lastByteAt"] < 6)
        silent = {name: why(vms[name]) for name in DOES_NOT}
        limits = {name: round(found["suspendsAt"] - found["lastActiveAt"], 1) for name, found in silent.items()}
        assert limits == dict.fromkeys(DOES_NOT, 60.0)
        first, last = (pick(found["suspendsAt"] for found in silent.values()) for pick in (min, max))

        world.pass_time(max(0.0, first - 2 - why(vms["nothing"])["now"]))
        assert {name: vm.state for name, vm in vms.items()} == dict.fromkeys(vms, "RUNNING")
        world.pass_time(last - first + 3)
        states = {name: eventually(partial(getattr, vm, "state"), lambda state: state != "SUSPENDING")
                  for name, vm in vms.items()}  # fmt: skip
        assert states == {name: "RUNNING" if name in KEEPS else "SUSPENDED" for name in vms}
        assert {name: why(vms[name])["reason"] for name in KEEPS} == dict.fromkeys(KEEPS, "traffic")
        begun = next(each["at"] for each in vms["nothing"].timeline() if each["action"] == "suspend")
        assert 60 <= begun - silent["nothing"]["lastActiveAt"] < 61.5
        (found,) = [each for each in world.service.every("/microvms") if each["microvmId"] == vms["nothing"].microvm_id]
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
