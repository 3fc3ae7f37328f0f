"""What leaves a slot, on the real kernel: a guest made of a namespace, and an internet made of another (spec 8)."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from ipaddress import IPv4Address

import pytest

from support.guest_wire import Guest, wired_guest
from support.internet import (
    DOCUMENTATION,
    OTHER_PRIVATE,
    OTHER_PUBLIC,
    PRIVATE,
    PUBLIC,
    Internet,
    internet,
    tcp,
    udp,
)
from torpor.config import NetworkSettings
from torpor.host.network import rules
from torpor.host.network.pool import SlotPool
from torpor.host.network.slot import Slot
from torpor.host.network.tenant import ANYBODY, Tenant
from torpor.model.egress import ALL, NO_EGRESS, Egress, EgressKind, Rule

pytestmark = pytest.mark.real
SETTINGS = NetworkSettings(slots="10.198.0.0/24", spare_slots=0, security_groups={
    "sg-1": {"egress": ["tcp 5432 10.77.0.0/24"]}})


@pytest.fixture(scope="module")
def outside() -> Iterator[Internet]:
    with internet() as found:
        yield found


@pytest.fixture
async def pool(outside: Internet) -> AsyncIterator[SlotPool]:
    async for made in pool_of(SETTINGS):
        yield made


async def pool_of(settings: NetworkSettings) -> AsyncIterator[SlotPool]:
    made = SlotPool(settings, f"t{secrets.token_hex(2)}")
    await made.start()
    yield made
    for number in await made.survey():
        await made.remove(number)
    await made.stop()


async def reached(pool: SlotPool, tenant: Tenant) -> tuple[set[tuple[str, str, int]], Slot]:
    """Everything of the small internet that a tenant's guest reaches."""
    slot = await pool.take(tenant)
    with wired_guest(slot) as guest:
        return await asyncio.to_thread(_reached, guest), slot


def _reached(guest: Guest) -> set[tuple[str, str, int]]:
    asked = [("tcp", address, port) for address in (PUBLIC, PRIVATE, OTHER_PRIVATE, DOCUMENTATION)
             for port in (53, 80, 443, 5432)]
    asked += [("udp", address, port) for address in (PUBLIC, PRIVATE) for port in (53, 5000)]
    asks = {"tcp": tcp, "udp": udp}
    return {(protocol, address, port) for protocol, address, port in asked
            if guest.run(partial(asks[protocol], address, port, timeout=1.0)) == b"HELLO"}


WEB = {("tcp", PUBLIC, 80), ("tcp", PUBLIC, 443), ("tcp", PUBLIC, 5432)}


async def test_internet_egress_is_tcp_to_public_addresses(pool: SlotPool, outside: Internet) -> None:
    found, slot = await reached(pool, ANYBODY)
    assert found == WEB
    # Seen from outside it is this machine that asks.
    assert slot.address not in outside.peers(PUBLIC, 80)


async def test_internet_egress_with_udp_is_a_setting(outside: Internet) -> None:
    async for pool in pool_of(NetworkSettings(slots="10.198.0.0/24", spare_slots=0, internet_udp=True)):
        found, _ = await reached(pool, ANYBODY)
        assert found == WEB | {("udp", PUBLIC, 5000)}


async def test_ranges_that_are_not_public_are_reached_when_they_are_allowed(outside: Internet) -> None:
    async for pool in pool_of(NetworkSettings(slots="10.198.0.0/24", spare_slots=0, allowed_ranges=["10.77.0.0/24"])):
        found, _ = await reached(pool, ANYBODY)
        assert found == WEB | {("tcp", PRIVATE, 80), ("tcp", PRIVATE, 443), ("tcp", PRIVATE, 5432)}


async def test_no_egress_is_none(pool: SlotPool) -> None:
    assert (await reached(pool, Tenant(NO_EGRESS)))[0] == set()


async def test_groups_of_a_connector_allow_by_network_port_and_protocol(pool: SlotPool) -> None:
    groups = (Rule.parse("tcp 5432 10.77.0.0/24"), Rule.parse("tcp 80-443 0.0.0.0/0"), Rule.parse("udp 5000 0.0.0.0/0"))
    found, _ = await reached(pool, Tenant(Egress(EgressKind.RULES, groups, (ALL,))))
    # Everywhere means the public internet; a private network is reached where a rule names one.
    assert found == {("tcp", PUBLIC, 80), ("tcp", PUBLIC, 443), ("udp", PUBLIC, 5000), ("tcp", PRIVATE, 5432)}


async def test_a_packet_needs_a_rule_of_a_group_and_one_of_a_subnet(pool: SlotPool) -> None:
    groups, subnets = (Rule.parse("tcp 80-443 0.0.0.0/0"),), (Rule.parse("tcp 443-6000 0.0.0.0/0"),)
    found, _ = await reached(pool, Tenant(Egress(EgressKind.RULES, groups, subnets)))
    assert found == {("tcp", PUBLIC, 443)}


async def test_a_connector_without_a_rule_lets_nothing_out(pool: SlotPool) -> None:
    assert (await reached(pool, Tenant(Egress(EgressKind.RULES, (), (ALL,)))))[0] == set()


async def test_no_rule_opens_other_slots_or_link_local_addresses(pool: SlotPool) -> None:
    other = await pool.take()
    rules = tuple(Rule.parse(f"all {network}") for network in ("10.198.0.0/24", "169.254.0.0/16", "0.0.0.0/0"))
    slot = await pool.take(Tenant(Egress(EgressKind.RULES, rules, (ALL,))))
    with wired_guest(other) as neighbour, wired_guest(slot) as guest:
        listener = neighbour.run(lambda: socket.create_server(("", 80)))
        try:
            host = str(IPv4Address(slot.address) - 1)
            for address in (other.address, other.control_address, "100.64.0.1", host, "169.254.169.253"):
                assert guest.run(partial(tcp, address, 80, timeout=0.5)) in ("refused", "silence"), address
        finally:
            listener.close()


async def test_what_a_tenant_may_not_reach_is_refused_at_once_and_not_after_a_silence(pool: SlotPool) -> None:
    slot = await pool.take(Tenant(NO_EGRESS))
    with wired_guest(slot) as guest:
        for address in (PUBLIC, PRIVATE, "8.8.8.8"):
            assert guest.run(partial(tcp, address, 443)) == "refused"
        assert guest.run(lambda: udp("8.8.8.8", 53)) == "refused"


async def test_ipv6_goes_nowhere(pool: SlotPool) -> None:
    slot = await pool.take()
    with wired_guest(slot) as guest:
        def ask() -> str:
            with socket.socket(socket.AF_INET6) as asking:
                asking.settimeout(1)
                try:
                    asking.connect(("2001:db8::1", 80))
                except OSError:
                    return "refused"
                return "reached"

        assert guest.run(ask) == "refused"


@pytest.mark.parametrize("direction", ["down", "up"])
async def test_bandwidth_of_the_endpoint_is_that_of_the_size_and_egress_is_not_limited(
        pool: SlotPool, outside: Internet, direction: str) -> None:
    rate, size = 4_000_000, 16_000_000
    slot = await pool.take(Tenant(bandwidth=rate))
    with wired_guest(slot) as guest:
        listener = guest.run(lambda: socket.create_server(("100.64.0.2", 8080)))
        took = await asyncio.to_thread(_transfer, listener, slot.address, size, direction)
        listener.close()
    # A second's worth passes at once; TCP needs a moment to find the rate.
    assert (size - 1.2 * rate) / rate < took < size / rate * 3


def _transfer(listener: socket.socket, address: str, size: int, direction: str) -> float:
    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            if direction == "down":
                connection.sendall(b"x" * size)
            else:
                _drain(connection, size)
                connection.sendall(b"!")

    serving = threading.Thread(target=serve)
    serving.start()
    begun = time.monotonic()
    with socket.create_connection((address, 8080)) as connection:
        if direction == "down":
            _drain(connection, size)
        else:
            connection.sendall(b"x" * size)
            assert connection.recv(1) == b"!"
    serving.join()
    return time.monotonic() - begun


def _drain(connection: socket.socket, size: int) -> None:
    while size:
        part = connection.recv(1 << 18)
        assert part
        size -= len(part)


async def test_a_tenants_rules_are_in_place_before_its_slot_is_handed_out(pool: SlotPool) -> None:
    """Measured besides: the one transaction is a small part of a launch."""
    times = []
    for _ in range(5):
        pool._likely = ANYBODY
        pool._ready.append(await pool._make())
        begun = time.perf_counter()
        slot = await pool.take(Tenant(NO_EGRESS, bandwidth=1_000_000))
        times.append(time.perf_counter() - begun)
        with wired_guest(slot) as guest:
            assert guest.run(lambda: tcp(OTHER_PUBLIC, 80)) == "refused"
    print(f"take with a tenant: {sorted(times)[2] * 1000:.1f} ms")
    assert sorted(times)[2] < 0.1


async def test_what_is_open_ends_when_egress_is_taken_away(pool: SlotPool) -> None:
    slot = await pool.take(Tenant(bandwidth=8_000_000))
    with wired_guest(slot) as guest:
        def begin() -> socket.socket:
            connection = socket.create_connection((PUBLIC, 80), timeout=5)
            connection.sendall(b"one")
            assert connection.recv(10) == b"ONE"
            return connection

        connection = await asyncio.to_thread(guest.run, begin)
        await pool.let(slot, Tenant(NO_EGRESS))
        connection.sendall(b"two")
        with connection, pytest.raises(ConnectionResetError):
            connection.recv(10)
        assert guest.run(lambda: tcp(PUBLIC, 80)) == "refused"


async def test_one_guest_cannot_fill_the_machines_table_of_connections(
        pool: SlotPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "CONNECTIONS", 20)
    slot, other = await pool.take(Tenant(bandwidth=8_000_000)), await pool.take()
    with wired_guest(slot) as guest, wired_guest(other) as neighbour, contextlib.ExitStack() as connections:
        def connect() -> socket.socket:
            return connections.enter_context(socket.create_connection((PUBLIC, 80), timeout=5))

        for _ in range(20):
            await asyncio.to_thread(guest.run, connect)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(guest.run, connect)
        assert neighbour.run(lambda: tcp(PUBLIC, 80)) == b"HELLO"
