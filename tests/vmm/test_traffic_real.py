"""What comes over the network does not mind that a VM is being saved."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from support.vmm_guest import GUEST
from support.vmm_world import RealWorld, Saved, Vm, World
from torpor.vmm.process import in_namespace

pytestmark = [
    pytest.mark.real,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("engine_lab", ["qemu", "firecracker"], indirect=True),
]
ROUNDS = 3
PAUSE = 0.02
"""Seconds between two frames: a guest's 256 buffers are not used up before it is saved, not even in the lab."""
PORT = 9


@contextlib.contextmanager
def frames_for(vm: Vm) -> Iterator[None]:
    """Datagrams for its guest, one after the other, that nobody in it wants."""
    assert vm.tap is not None
    netns = vm.tap.netns
    outside = in_namespace(netns, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    is_over = threading.Event()

    def send() -> None:
        while not is_over.wait(PAUSE):
            with contextlib.suppress(OSError):  # the guest says that nobody listens, or the queue is full
                outside.sendto(bytes(1000), (GUEST, PORT))

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        is_over.set()
        sender.join()
        outside.close()


async def test_frames_that_come_while_a_vm_is_saved_break_neither_its_network_nor_its_memory(
    world: World, base: Saved
) -> None:
    assert isinstance(world, RealWorld)
    vm = await world.resume(base)
    expected = await vm.guest.scribble(1)
    for number in range(ROUNDS):
        await vm.guest.put("round", str(number))
        with frames_for(vm):
            time.sleep(0.05)
            saved = await world.save(vm)
        await vm.vmm.end()
        vm = await world.resume(saved)
        # All buffers of its network card come into use, those that were filled meanwhile among them.
        with frames_for(vm):
            for again in range(30):
                await vm.guest.put(f"again-{again}", str(number))
                assert await vm.guest.get("round") == str(number)
        assert await vm.guest.checksum() == expected
