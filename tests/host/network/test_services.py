"""What answers a guest from inside its slot, on the real kernel: metadata, and allow-lists of names (spec 8, 13)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import IPv4Address
from typing import TypeVar

import pytest

from support.guest_wire import Guest, wired_guest
from support.internet import OTHER_PUBLIC, PRIVATE, PUBLIC, Internet, internet, tcp, udp
from torpor.config import NetworkSettings
from torpor.host.network.dns import Address, read_addresses, read_question, write_answer, write_question
from torpor.host.network.names import Asked
from torpor.host.network.pool import SlotPool
from torpor.host.network.services import SlotServices
from torpor.host.network.slot import Slot
from torpor.host.network.tenant import Tenant
from torpor.host.network.walls import Walls
from torpor.model.egress import NO_EGRESS, Egress, EgressKind, Name
from torpor.model.errors import RoleUnavailable
from torpor.model.role import RoleCredentials

pytestmark = pytest.mark.real
SETTINGS = NetworkSettings(slots="10.198.0.0/24", spare_slots=0)
ZONE = {"allowed.example": [PUBLIC], "sub.wild.example": [PUBLIC], "db.example": [PUBLIC], "inside.example": [PRIVATE],
        "other.example": [OTHER_PUBLIC], "secret.evil.example": [OTHER_PUBLIC]}
LIST = Egress(EgressKind.NAMES, names=tuple(map(Name.parse, (
    "allowed.example", "*.wild.example", "db.example:5432", "inside.example", "missing.example"))))
ROLE = "arn:aws:iam::000000000000:role/worker"
METADATA = "169.254.169.254"
CREDENTIALS = "/latest/meta-data/iam/security-credentials/"
T = TypeVar("T")


@dataclass
class Roles:
    is_broken: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)

    async def credentials(self, role: str, owner: str) -> RoleCredentials:
        self.asked.append((role, owner))
        if self.is_broken:
            raise RoleUnavailable("the STS does not answer")
        now = datetime(2026, 1, 1, tzinfo=UTC)
        return RoleCredentials(f"ASIA-{owner}", "secret", "token", now, now + timedelta(hours=1))


@dataclass
class World:
    pool: SlotPool
    services: SlotServices
    roles: Roles
    told: list[tuple[str, Asked]]

    @contextlib.asynccontextmanager
    async def guest(self, tenant: Tenant, owner: str = "microvm-1") -> AsyncIterator[tuple[Guest, Slot]]:
        slot = await self.pool.take(tenant)
        await self.services.open(slot, owner, tenant)
        with wired_guest(slot) as guest:
            yield guest, slot
        await self.services.close(slot.number)
        await self.pool.give_back(slot)

    def refused(self) -> list[str]:
        return [asked.name for _, asked in self.told if not asked.is_allowed]


@pytest.fixture(scope="module")
def outside() -> Iterator[Internet]:
    with internet() as found:
        found.answer = _answer
        yield found


@pytest.fixture
async def world(outside: Internet) -> AsyncIterator[World]:
    pool = SlotPool(SETTINGS, f"t{secrets.token_hex(2)}")
    pool.walls = Walls.of(SETTINGS, IPv4Address(PUBLIC))
    await pool.start()
    told: list[tuple[str, Asked]] = []
    roles = Roles()
    services = SlotServices(pool.walls, roles, lambda owner, asked: told.append((owner, asked)))
    yield World(pool, services, roles, told)
    await services.stop()
    for number in await pool.survey():
        await pool.remove(number)
    await pool.stop()


def _answer(protocol: str, port: int, data: bytes) -> bytes:
    if (protocol, port) != ("udp", 53):
        return data.upper()
    question = read_question(data)
    found = [Address(IPv4Address(text), 30) for text in ZONE.get(question.name, [])]
    return write_answer(question, 0 if found else 3, found)


async def inside(guest: Guest, work: Callable[[], T]) -> T:
    return await asyncio.to_thread(guest.run, work)


def request(method: str, path: str, **headers: str) -> tuple[int, str]:
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection((METADATA, 80), timeout=5) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: {METADATA}\r\n{head}\r\n".encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    top, _, body = answer.decode().partition("\r\n\r\n")
    return int(top.split(" ")[1]), body


def token() -> str:
    return request("PUT", "/latest/api/token", X_aws_ec2_metadata_token_ttl_seconds="60")[1]


def fetch(path: str) -> tuple[int, str]:
    return request("GET", path, X_aws_ec2_metadata_token=token())


async def test_the_role_and_its_credentials_are_given_for_a_token(world: World) -> None:
    async with world.guest(Tenant(role=ROLE)) as (guest, _):
        assert await inside(guest, lambda: fetch(CREDENTIALS)) == (200, "execution_role")
        status, body = await inside(guest, lambda: fetch(CREDENTIALS + "execution_role"))
    found = json.loads(body)
    assert (status, found["Code"], found["AccessKeyId"], found["SecretAccessKey"], found["Token"]) == (
        200, "Success", "ASIA-microvm-1", "secret", "token")
    assert (found["LastUpdated"], found["Expiration"]) == ("2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z")
    assert world.roles.asked == [(ROLE, "microvm-1")]


@pytest.mark.parametrize(("method", "path", "headers", "status"), [
    ("GET", CREDENTIALS, {}, 401),
    ("GET", CREDENTIALS, {"X_aws_ec2_metadata_token": "forged"}, 401),
    ("PUT", "/latest/api/token", {}, 400),
    ("PUT", "/latest/api/token", {"X_aws_ec2_metadata_token_ttl_seconds": "0"}, 400),
    ("PUT", "/latest/api/token", {"X_aws_ec2_metadata_token_ttl_seconds": "21601"}, 400),
    ("PUT", "/latest/api/token", {"X_aws_ec2_metadata_token_ttl_seconds": "60", "X_Forwarded_For": "1.2.3.4"}, 403),
    ("GET", "/latest/api/token", {}, 405),
    ("more words", "than three", {}, 400),
])
async def test_a_request_that_is_not_imdsv2s_is_refused(world: World, method: str, path: str, headers: dict[str, str],
                                                        status: int) -> None:
    async with world.guest(Tenant(role=ROLE)) as (guest, _):
        assert (await inside(guest, lambda: request(method, path, **headers)))[0] == status
    assert world.roles.asked == []


async def test_without_a_role_credentials_are_not_found(world: World) -> None:
    async with world.guest(Tenant()) as (guest, _):
        for path in (CREDENTIALS, CREDENTIALS + "execution_role", "/latest/meta-data/", "/latest/user-data"):
            assert (await inside(guest, partial(fetch, path)))[0] == 404


async def test_credentials_that_cannot_be_had_are_a_503(world: World) -> None:
    world.roles.is_broken = True
    async with world.guest(Tenant(role=ROLE)) as (guest, _):
        assert (await inside(guest, lambda: fetch(CREDENTIALS + "execution_role")))[0] == 503


async def test_each_guest_meets_its_own_metadata_service_whatever_its_egress(world: World) -> None:
    async with world.guest(Tenant(NO_EGRESS, role=ROLE), "microvm-1") as (one, _), \
            world.guest(Tenant(role=ROLE), "microvm-2") as (two, slot):
        mine = await inside(one, token)
        for guest, owner in ((one, "microvm-1"), (two, "microvm-2")):
            body = (await inside(guest, lambda: fetch(CREDENTIALS + "execution_role")))[1]
            assert json.loads(body)["AccessKeyId"] == f"ASIA-{owner}"
        # A token is good in its own slot, and the other's service cannot be reached by any address.
        assert (await inside(two, lambda: request("GET", CREDENTIALS, X_aws_ec2_metadata_token=mine)))[0] == 401
        for address in (slot.address, slot.control_address, str(IPv4Address(slot.address) - 1), "100.64.0.1"):
            assert await inside(one, partial(tcp, address, 80, timeout=0.5)) in ("refused", "silence")


async def test_an_answer_of_the_metadata_service_travels_one_hop(world: World) -> None:
    async with world.guest(Tenant(role=ROLE)) as (guest, _):
        def hops() -> int:
            with socket.create_connection((METADATA, 80), timeout=5) as connection:
                connection.setsockopt(socket.IPPROTO_IP, 12, 1)  # IP_RECVTTL, which TCP answers by getsockopt alone
                with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as listener:
                    listener.settimeout(5)
                    connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    while True:
                        packet = listener.recv(2048)
                        if packet[12:16] == socket.inet_aton(METADATA):
                            return packet[8]

        assert await inside(guest, hops) == 1


async def test_a_guest_that_says_nothing_or_nonsense_does_not_hold_the_service_up(world: World) -> None:
    async with world.guest(Tenant(role=ROLE)) as (guest, _):
        def annoy() -> list[socket.socket]:
            silent = [socket.create_connection((METADATA, 80), timeout=5) for _ in range(20)]
            for each, said in zip(silent, (b"", b"\x00" * 100, b"GET", b"\r\n" * 50) * 5, strict=True):
                each.sendall(said)
            return silent

        silent = await inside(guest, annoy)
        assert (await inside(guest, lambda: fetch(CREDENTIALS)))[0] == 200
        for each in silent:
            each.close()


def resolve(name: str, how: Callable[..., bytes | str] = udp, server: str = "100.64.0.1") -> list[str] | str:
    message = write_question(7, name)
    answer = how(server, 53, message if how is udp else len(message).to_bytes(2) + message)
    if isinstance(answer, str):
        return answer
    try:
        return [str(each.address) for each in read_addresses(answer if how is udp else answer[2:], 7, name)]
    except Exception as error:
        return str(error)


def greet(address: str, name: str | None, port: int = 443) -> bytes | str:
    """What comes back when a TLS client says hello to an echo of capital letters."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    answer = tcp(address, port, outgoing.read())
    return "closed" if answer == b"" else answer if isinstance(answer, str) else "carried"


async def test_names_on_the_list_resolve_and_their_addresses_are_reached(world: World, outside: Internet) -> None:
    async with world.guest(Tenant(LIST)) as (guest, slot):
        assert await inside(guest, lambda: resolve("allowed.example")) == [PUBLIC]
        assert await inside(guest, lambda: resolve("sub.wild.example", tcp)) == [PUBLIC]
        assert await inside(guest, lambda: greet(PUBLIC, "allowed.example")) == "carried"
        assert await inside(guest, lambda: tcp(PUBLIC, 80, b"GET / HTTP/1.1\r\nhost: allowed.example\r\n\r\n")) == (
            b"GET / HTTP/1.1\r\nHOST: ALLOWED.EXAMPLE\r\n\r\n")
        # A port of its own is opened for the addresses of that name alone.
        assert await inside(guest, lambda: tcp(PUBLIC, 5432)) == "refused"
        assert await inside(guest, lambda: resolve("db.example")) == [PUBLIC]
        assert await inside(guest, lambda: tcp(PUBLIC, 5432)) == b"HELLO"
    assert {asked.name for owner, asked in world.told if asked.is_allowed and owner == "microvm-1"} >= {
        "allowed.example", "sub.wild.example", "db.example"}
    assert slot.address not in outside.peers(PUBLIC, 443)


async def test_names_not_on_the_list_are_neither_asked_for_nor_reached(world: World, outside: Internet) -> None:
    async with world.guest(Tenant(LIST)) as (guest, _):
        heard = len(outside.heard)
        for name in ("other.example", "wild.example", "notallowed.example", "aabbccdd.secret.evil.example"):
            assert await inside(guest, partial(resolve, name)) == "response code 3"
        assert outside.heard[heard:] == []  # nothing of what was asked for left this machine
        assert await inside(guest, lambda: greet(OTHER_PUBLIC, "other.example")) == "closed"
        assert world.refused()[-1] == "other.example"


async def test_a_connection_must_name_what_its_address_was_an_answer_for(world: World) -> None:
    async with world.guest(Tenant(LIST)) as (guest, _):
        # Allowed by name, and nobody asked for its address yet.
        assert await inside(guest, lambda: greet(PUBLIC, "allowed.example")) == "closed"
        await inside(guest, lambda: resolve("allowed.example"))
        assert await inside(guest, lambda: greet(PUBLIC, "allowed.example")) == "carried"
        # Another name at the same address, no name, another address, and no TLS at all.
        for address, name in ((PUBLIC, "sub.wild.example"), (PUBLIC, "other.example"), (PUBLIC, None),
                              (OTHER_PUBLIC, "allowed.example")):
            assert await inside(guest, partial(greet, address, name)) == "closed", (address, name)
        assert await inside(guest, lambda: tcp(PUBLIC, 443, b"SSH-2.0-x\r\n")) in (b"", "refused")
        assert await inside(guest, lambda: tcp(PUBLIC, 80, b"GET / HTTP/1.1\r\nHost: other.example\r\n\r\n")) in (
            b"", "refused")


async def test_other_resolvers_ports_and_protocols_stay_closed(world: World) -> None:
    async with world.guest(Tenant(LIST)) as (guest, _):
        await inside(guest, lambda: resolve("allowed.example"))
        assert await inside(guest, lambda: resolve("allowed.example", server=PUBLIC)) == "refused"
        assert await inside(guest, lambda: resolve("allowed.example", tcp, server=PUBLIC)) == "refused"
        for port in (25, 853, 8443):
            assert await inside(guest, partial(tcp, PUBLIC, port)) == "refused"
        assert await inside(guest, lambda: udp(PUBLIC, 443)) == "refused"
        for port in (9080, 9443):
            assert await inside(guest, partial(tcp, "100.64.0.1", port)) in (b"", "refused")


async def test_a_name_that_leads_into_the_private_network_leads_nowhere(world: World) -> None:
    async with world.guest(Tenant(LIST)) as (guest, _):
        assert await inside(guest, lambda: resolve("inside.example")) == []
        assert await inside(guest, lambda: greet(PRIVATE, "inside.example")) == "closed"
    assert world.refused()[0] == "inside.example"


async def test_a_name_that_does_not_exist_is_told_so(world: World) -> None:
    async with world.guest(Tenant(LIST)) as (guest, _):
        assert await inside(guest, lambda: resolve("missing.example")) == "response code 3"


async def test_services_of_a_slot_can_be_opened_again_by_a_later_process(world: World) -> None:
    async with world.guest(Tenant(LIST, role=ROLE)) as (guest, slot):
        await world.services.stop()
        assert await inside(guest, lambda: tcp(METADATA, 80)) == "refused"
        assert await inside(guest, lambda: resolve("allowed.example")) == "refused"
        assert await inside(guest, lambda: tcp(PUBLIC, 443)) == "refused"  # the rules stay
        later = SlotServices(world.pool.walls, world.roles, lambda owner, asked: None)
        await later.open(slot, "microvm-1", Tenant(LIST, role=ROLE))
        assert (await inside(guest, lambda: fetch(CREDENTIALS)))[0] == 200
        assert await inside(guest, lambda: resolve("allowed.example")) == [PUBLIC]
        await later.stop()


async def test_opening_a_slots_services_takes_little_of_a_launch(world: World) -> None:
    loop, times = asyncio.get_running_loop(), []
    for _ in range(5):
        slot = await world.pool.take()
        begun = loop.time()
        await world.services.open(slot, "microvm-1", Tenant(role=ROLE))
        times.append(loop.time() - begun)
    print(f"services of a slot: {sorted(times)[2] * 1000:.1f} ms")
    assert sorted(times)[2] < 0.1
