"""Slots on the real kernel, with a guest made of a namespace instead of a VM."""

from __future__ import annotations

import asyncio
import errno
import secrets
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from support.guest_wire import wired_guest
from torpor.config import NetworkSettings
from torpor.host.network.pool import SlotPool
from torpor.host.network.slot import place

pytestmark = pytest.mark.real
NETWORK = "10.198.0.0/24"


@pytest.fixture
async def pool() -> AsyncIterator[SlotPool]:
    made = SlotPool(NetworkSettings(slots=NETWORK, spare_slots=1), f"t{secrets.token_hex(2)}")
    await made.start()
    yield made
    for number in await made.survey():
        await made.remove(number)
    await made.stop()
    assert await made.survey() == []


def serve_once(address: str, port: int) -> Callable[[], tuple[str, bytes]]:
    listener = socket.create_server((address, port))
    listener.settimeout(10)

    def accept() -> tuple[str, bytes]:
        connection, peer = listener.accept()
        with listener, connection:
            data = connection.recv(100)
            connection.sendall(data.upper())
            return peer[0], data

    return accept


def ask(address: str, port: int, text: bytes = b"hello") -> bytes:
    with socket.create_connection((address, port), timeout=5) as connection:
        connection.sendall(text)
        return connection.recv(100)


def refusal(address: str, port: int) -> int | None:
    """The errno with which a connection fails; None when it succeeds."""
    try:
        socket.create_connection((address, port), timeout=1).close()
    except TimeoutError:
        return errno.ETIMEDOUT
    except OSError as error:
        return error.errno
    return None


async def test_a_spare_slot_is_there_before_anybody_asks(pool: SlotPool) -> None:
    async with asyncio.timeout(5):
        while not pool.spare_count:
            await asyncio.sleep(0.01)
    spare = pool._ready[0]
    assert await pool.survey() == []
    assert await pool.take() == spare
    assert await pool.survey() == [spare.number]


async def test_any_port_of_the_slot_address_reaches_the_same_port_of_the_guest(pool: SlotPool) -> None:
    slot = await pool.take()
    with wired_guest(slot) as guest:
        accept = guest.run(lambda: serve_once("100.64.0.2", 4321))
        served = asyncio.create_task(asyncio.to_thread(accept))
        assert await asyncio.to_thread(ask, slot.address, 4321) == b"HELLO"
        assert await served == ("100.64.0.1", b"hello")


async def test_the_control_address_reaches_the_agent_port_and_no_other(pool: SlotPool) -> None:
    slot = await pool.take()
    with wired_guest(slot) as guest:
        accept = guest.run(lambda: serve_once("100.64.0.3", 1024))
        served = asyncio.create_task(asyncio.to_thread(accept))
        assert await asyncio.to_thread(ask, slot.control_address, 1024) == b"HELLO"
        await served
        assert await asyncio.to_thread(refusal, slot.control_address, 1025) is not None


async def test_data_through_the_slot_is_counted_and_a_connection_without_data_is_not(pool: SlotPool) -> None:
    slot = await pool.take()
    with wired_guest(slot) as guest:
        accept = guest.run(lambda: serve_once("100.64.0.2", 8080))
        served = asyncio.create_task(asyncio.to_thread(accept))
        connection = await asyncio.to_thread(socket.create_connection, (slot.address, 8080), 5)
        assert await pool.payload_bytes() == {}
        with connection:
            connection.sendall(b"hello")
            assert await asyncio.to_thread(connection.recv, 10) == b"HELLO"
        await served
        assert (await pool.payload_bytes())[slot.number] > 0


async def test_a_guest_cannot_reach_the_host_or_another_guest(pool: SlotPool) -> None:
    slot, other = await pool.take(), await pool.take()
    host_address = slot.address.rpartition(".")[0] + "." + str(int(slot.address.rpartition(".")[2]) - 1)
    with wired_guest(slot) as guest, socket.create_server(("0.0.0.0", 0)) as listener:
        port = listener.getsockname()[1]
        others = (host_address, other.address, other.control_address, "100.64.0.1", "10.0.0.1", "169.254.169.254")
        for address in others:
            assert guest.run(partial(refusal, address, port)) is not None, address


async def test_a_guest_that_forges_its_source_address_is_not_heard(pool: SlotPool) -> None:
    slot = await pool.take()
    with wired_guest(slot) as guest, socket.create_server(("0.0.0.0", 0)) as listener:
        listener.settimeout(0.5)

        def forge() -> None:
            subprocess.run(["ip", "addr", "add", "192.0.2.9/32", "dev", "lo"], check=True)
            sender = socket.socket()
            sender.bind(("192.0.2.9", 0))
            sender.settimeout(0.5)
            with sender, pytest.raises(OSError):
                sender.connect((slot.address, listener.getsockname()[1]))

        guest.run(forge)
        with pytest.raises(TimeoutError):
            listener.accept()


async def test_a_slot_given_back_leaves_nothing_and_its_addresses_are_not_used_again(pool: SlotPool) -> None:
    taken: set[str] = set()
    for _ in range(5):
        slot = await pool.take()
        assert slot.address not in taken
        taken.add(slot.address)
        await pool.give_back(slot)
        await pool.give_back(slot)
        assert not slot.netns.exists()
        assert not Path(f"/sys/class/net/tp{slot.number}").exists()


async def test_a_slot_outlives_its_pool_and_is_adopted_by_the_next(pool: SlotPool) -> None:
    slot = await pool.take()
    owner = slot.name.split("-")[1]
    later = SlotPool(NetworkSettings(slots=NETWORK, spare_slots=0), owner)
    await later.start()
    assert slot.number in await later.survey()
    assert await later.adopt(slot.number) == slot
    assert await later.adopt((slot.number + 7) % 32) is None


async def test_a_number_that_somebody_else_has_is_passed_over(pool: SlotPool) -> None:
    slot = await pool.take()
    stranger = SlotPool(NetworkSettings(slots=NETWORK, spare_slots=0), "t0other")
    await stranger.start()
    try:
        stranger._next = slot.number
        theirs = await stranger.take()
        assert theirs.number != slot.number
        assert Path(f"/sys/class/net/tp{slot.number}").exists()
        await stranger.give_back(theirs)
    finally:
        await stranger.stop()


async def test_cancelling_a_take_keeps_the_slot_for_the_next_one(pool: SlotPool) -> None:
    await pool.take()
    async with asyncio.timeout(10):
        for _ in range(20):
            taking = asyncio.create_task(pool.take())
            await asyncio.sleep(0)
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)
        # The stock may be making one at this very moment.
        while await pool.survey() != sorted(pool._out):
            await asyncio.sleep(0.02)


def test_the_addresses_of_a_slot_lie_in_its_own_eight() -> None:
    network = IPv4Network("10.199.0.0/16")
    seen: set[IPv4Address] = set()
    for number in (0, 1, 8191):
        slot = place("torpor-x", network, number)
        for text in (slot.address, slot.control_address):
            address = IPv4Address(text)
            assert address in network
            assert address not in seen
            assert (int(address) - int(network.network_address)) // 8 == number
            seen.add(address)
