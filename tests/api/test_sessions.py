"""Commands and copies over `/torpor/v1`: who may, what is refused before the socket opens, what crosses it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from hypothesis import given
from hypothesis import strategies as st

from support.api_wire import HOST
from support.api_world import ACCOUNT, ApiWorld, api_world, exchange, image_arn
from torpor.api.extras.sessions import read_order
from torpor.host.session import SessionOrder
from torpor.model.account import PrincipalKind
from torpor.model.errors import Invalid
from torpor.model.ids import AccountId, MicrovmId


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[ApiWorld]:
    async with api_world(tmp_path) as made:
        yield made


async def microvm(world: ApiWorld) -> str:
    return await world.run_microvm(await world.create_image())


async def user(world: ApiWorld, *actions: str) -> ApiWorld:
    policy = {"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Action": list(actions), "Resource": image_arn("counter")}]}  # fmt: skip
    accounts = world.control.accounts
    principal = await accounts.put_principal(AccountId(ACCOUNT), PrincipalKind.USER, "u", {"p": policy})
    return replace(world, credential=await accounts.create_key(principal.arn))


@dataclass
class Socket:
    """A client's side of one WebSocket, without a network."""

    sent: list[Any] = field(default_factory=list)
    inbox: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)

    async def receive(self) -> Any:
        return await self.inbox.get()

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return next((each["status"] for each in self.sent if each["type"] == "websocket.http.response.start"), 101)

    @property
    def refusal(self) -> Any:
        return json.loads(next(each["body"] for each in self.sent if each["type"] == "websocket.http.response.body"))

    @property
    def output(self) -> bytes:
        return b"".join(each["bytes"] for each in self.sent if each.get("bytes"))

    @property
    def last(self) -> Any:
        return self.sent[-1]


async def run(world: ApiWorld, microvm_id: str, order: Any, *inbox: Any) -> Socket:
    text = order if isinstance(order, str) else encoded(order)
    request = AWSRequest(method="GET", url=f"http://{HOST}/torpor/v1/microvms/{microvm_id}/exec?order={text}")
    SigV4Auth(world.keys, "lambda", "us-east-1").add_auth(request)
    headers = [(name.lower().encode(), str(value).encode()) for name, value in request.headers.items()]
    scope = {"type": "websocket", "raw_path": f"/torpor/v1/microvms/{microvm_id}/exec".encode(),
             "query_string": f"order={text}".encode(), "headers": [*headers, (b"host", HOST.encode())]}  # fmt: skip
    socket = Socket()
    for message in ({"type": "websocket.connect"}, *inbox):
        socket.inbox.put_nowait(message)
    async with asyncio.timeout(20):
        await world.app(scope, socket.receive, socket.send)
    return socket


def encoded(order: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(order).encode()).decode().rstrip("=")


def typed(data: bytes) -> dict[str, Any]:
    return {"type": "websocket.receive", "bytes": data, "text": None}


END = {"type": "websocket.receive", "text": '{"type":"end"}', "bytes": None}


async def test_a_command_crosses_the_socket_and_its_code_closes_it(world: ApiWorld) -> None:
    vm = await microvm(world)
    socket = await run(world, vm, {"args": ["cat"]}, typed(b"in"), typed(b"put"), END)
    assert socket.output == b"\x00in\x00put"
    assert [each.get("text") for each in socket.sent][-2] == '{"type": "exit", "code": 0}'
    assert (socket.last["type"], socket.last["code"]) == ("websocket.close", 1000)
    socket = await run(world, vm, {"args": ["sh", "-c", "echo problem >&2; exit 5"]})
    assert socket.output == b"\x01problem\n"


async def test_a_client_that_leaves_ends_its_command(world: ApiWorld) -> None:
    vm = await microvm(world)
    await run(world, vm, {"args": ["cat"]}, {"type": "websocket.disconnect"})
    live = world.control.microvms.fleet.find(MicrovmId(vm))
    assert live is not None
    assert live.holders == []


async def test_a_command_that_cannot_be_is_refused_before_the_socket_opens(world: ApiWorld) -> None:
    vm = await microvm(world)
    for order, status, said in (
        ({"args": ["nonsense"]}, 400, "not found in $PATH"), ("abc", 400, "base64url"),
        ({"argv": []}, 400, "order must"), ({"args": "ls"}, 400, "list of strings"),
    ):  # fmt: skip
        socket = await run(world, vm, order)
        assert (socket.status, said in socket.refusal["message"]) == (status, True), socket.sent
    socket = await run(world, "microvm-none", {"args": ["true"]})
    assert (socket.status, socket.refusal["message"]) == (404, "MicroVM not found: microvm-none")
    world.host.exit_application(MicrovmId(vm))
    socket = await run(world, vm, {"args": ["true"]})
    assert socket.status in (409, 404)


async def test_commands_and_copies_need_permissions_of_their_own(world: ApiWorld) -> None:
    vm = await microvm(world)
    nobody = await user(world, "lambda:GetMicrovm", "lambda:RunMicrovm")
    assert (await run(nobody, vm, {"args": ["true"]})).status == 403
    assert (await archive(nobody, "GET", vm))[0] == 403
    assert (await archive(nobody, "PUT", vm, packed()))[0] == 403
    assert (await run(await user(world, "torpor:RunCommand"), vm, {"args": ["true"]})).status == 101
    assert (await archive(await user(world, "torpor:WriteFiles"), "PUT", vm, packed()))[0] == 200
    status, body = await archive(await user(world, "torpor:ReadFiles"), "GET", vm)
    with tarfile.open(fileobj=io.BytesIO(body)) as found:
        assert (status, found.getnames()) == (200, ["."])


def packed() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        entry = tarfile.TarInfo(".")
        entry.size = 3
        made.addfile(entry, io.BytesIO(b"abc"))
    return buffer.getvalue()


async def archive(world: ApiWorld, method: str, microvm_id: str, body: bytes = b"",
                  digest: str = "UNSIGNED-PAYLOAD") -> tuple[int, bytes]:  # fmt: skip
    path, query = f"/torpor/v1/microvms/{microvm_id}/archive", "path=%2Ftmp%2Ffile"
    request = AWSRequest(method=method, url=f"http://{HOST}{path}?{query}", headers={"x-amz-content-sha256": digest})
    SigV4Auth(world.keys, "lambda", "us-east-1").add_auth(request)
    headers = [(name.lower().encode(), str(value).encode()) for name, value in request.headers.items()]
    status, _, content = await exchange(world.app, method, path, query, [*headers, (b"host", HOST.encode())], body)
    return status, content


async def test_what_is_no_archive_is_refused_and_an_upload_says_that_it_is_unsigned(world: ApiWorld) -> None:
    vm = await microvm(world)
    assert (await archive(world, "PUT", vm, b"no tar at all" * 100))[0] == 400
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert (await archive(world, "PUT", vm, packed(), empty))[0] == 400
    assert (await archive(world, "GET", vm))[0] == 404


NAMES = st.sampled_from(["args", "environment", "cwd", "user", "terminal", "x"])
SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5)


@given(st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4)))
def test_any_order_is_one_or_refused(document: Any) -> None:
    try:
        found = read_order(encoded(document))
    except Invalid:
        return
    assert isinstance(found, SessionOrder)
    assert all(isinstance(each, str) for each in (*found.args, found.cwd, found.user, *found.environment))
