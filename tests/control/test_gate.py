"""Who passes an endpoint, with which text the others are refused, and how a request waits for its microVM
(spec 5.3, 5.4, 5.7)."""

from __future__ import annotations

import asyncio
import statistics
import time
from datetime import timedelta

import pytest

from support.microvm_world import ALL_HOOKS, AWAKE, CALLER, REGION, World
from torpor.control.gate import Admission
from torpor.model.arn import managed_connector
from torpor.model.endpoint import ALL_PORTS, PortRange
from torpor.model.errors import GateDenied, GateUnavailable, SnapshotDamaged
from torpor.model.hooks import Hook
from torpor.model.microvm import IdlePolicy, Microvm, MicrovmState

S = MicrovmState
HTTP = (PortRange(8080, 8080),)


async def _token(world: World, microvm: Microvm, ports: tuple[PortRange, ...] = HTTP) -> str:
    return await world.life.tokens.mint(CALLER, microvm.microvm_id, ports, 60)


async def test_a_token_opens_its_own_ports_of_its_own_microvm(world: World) -> None:
    microvm = await world.running()
    token = await _token(world, microvm, (PortRange(8080, 8080), PortRange(9000, 9010)))
    for port in (8080, 9000, 9010):
        admission = await world.life.gate.admit(microvm.endpoint_label, token, port)
        assert (admission.microvm_id, admission.upstream.port) == (microvm.microvm_id, port)
    for port in (8081, 8999, 9011):
        with pytest.raises(GateDenied, match=r"^Access to port denied$"):
            await world.life.gate.admit(microvm.endpoint_label, token, port)


@pytest.mark.parametrize("token", [None, "", "nonsense", "a.b.c.d.e", "....", "ä" * 20, "x" * 9000, "e30..a.b.c"])
async def test_what_is_no_token_is_missing_authentication(world: World, token: str | None) -> None:
    microvm = await world.running()
    for label in (microvm.endpoint_label, "unknown"):
        with pytest.raises(GateDenied, match=r"^Request missing authentication$"):
            await world.life.gate.admit(label, token, 8080)


async def test_a_token_of_another_microvm_or_host_name_fails(world: World) -> None:
    one, other = await world.running(), await world.running()
    token = await _token(world, one)
    for label in (other.endpoint_label, "00000000-0000-4000-8000-000000000000", one.microvm_id, ""):
        with pytest.raises(GateDenied, match=r"^Token authentication failed$"):
            await world.life.gate.admit(label, token, 8080)


async def test_an_expired_token_fails(world: World) -> None:
    microvm = await world.running()
    token = await world.life.tokens.mint(CALLER, microvm.microvm_id, HTTP, 1)
    await world.advance(59)
    await world.life.gate.admit(microvm.endpoint_label, token, 8080)
    await world.advance(1)
    with pytest.raises(GateDenied, match=r"^Token authentication failed$"):
        await world.life.gate.admit(microvm.endpoint_label, token, 8080)


async def test_a_wrong_token_or_port_does_not_wake_a_suspended_microvm(world: World) -> None:
    microvm, other = await world.running(idle_policy=AWAKE), await world.running()
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    for token in (None, "junk", await _token(world, other)):
        with pytest.raises(GateDenied):
            await world.life.gate.admit(microvm.endpoint_label, token, 8080)
    with pytest.raises(GateDenied, match=r"^Access to port denied$"):
        await world.life.gate.admit(microvm.endpoint_label, await _token(world, microvm), 22)
    assert (await world.get(microvm)).state is S.SUSPENDED


async def test_a_request_waits_for_the_launch_and_its_run_hook(world: World) -> None:
    world.images.hooks = ALL_HOOKS
    world.host.faults.fail_hook(Hook.RUN, status=200, seconds=0.5)
    microvm = await world.run()
    request = asyncio.create_task(world.life.gate.admit(microvm.endpoint_label, await _token(world, microvm), 8080))
    await world.advance(0.4)
    assert not request.done()
    await world.advance(0.2)
    assert (await request).microvm_id == microvm.microvm_id


async def test_a_request_wakes_a_suspended_microvm_and_is_held_until_it_runs(world: World) -> None:
    world.images.hooks = ALL_HOOKS
    microvm = await world.running(idle_policy=AWAKE)
    token = await _token(world, microvm)
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    world.host.faults.set_delay("restore_memory", 2.0)
    requests = [asyncio.create_task(world.life.gate.admit(microvm.endpoint_label, token, 8080)) for _ in range(20)]
    await world.advance(1.9)
    assert (await world.get(microvm)).state is S.SUSPENDED
    assert not any(request.done() for request in requests)
    await world.advance(0.2)
    assert len(await asyncio.gather(*requests)) == 20
    assert world.reached.count(("resume", "restore", "before")) == 1
    assert world.host.faults.calls_of(microvm.microvm_id).count(Hook.RESUME) == 1


@pytest.mark.parametrize("policy", [None, IdlePolicy(timedelta(seconds=60), timedelta(hours=1), False)])
async def test_without_auto_resume_a_suspended_microvm_is_unavailable(
    world: World, policy: IdlePolicy | None
) -> None:
    microvm = await world.running(idle_policy=policy)
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    with pytest.raises(GateUnavailable):
        await world.life.gate.admit(microvm.endpoint_label, await _token(world, microvm), 8080)
    assert (await world.get(microvm)).state is S.SUSPENDED


async def test_a_wake_that_fails_is_tried_once_more_and_then_unavailable(world: World) -> None:
    microvm = await world.running(idle_policy=AWAKE)
    token = await _token(world, microvm)
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    world.host.faults.fail_step("restore_memory", SnapshotDamaged("checksum"), times=2)
    with pytest.raises(GateUnavailable, match="checksum"):
        await world.life.gate.admit(microvm.endpoint_label, token, 8080)
    assert (await world.get(microvm)).state is S.SUSPENDED
    world.host.faults.fail_step("restore_memory", SnapshotDamaged("checksum"))
    await world.life.gate.admit(microvm.endpoint_label, token, 8080)
    assert (await world.get(microvm)).state is S.RUNNING


async def test_a_request_is_not_held_for_ever(world: World) -> None:
    microvm = await world.running(idle_policy=AWAKE)
    token = await _token(world, microvm)
    await world.life.microvms.suspend(CALLER, microvm.microvm_id)
    world.host.faults.set_delay("restore_memory", 300.0)
    request = asyncio.create_task(world.life.gate.admit(microvm.endpoint_label, token, 8080))
    await world.advance(61)
    with pytest.raises(GateUnavailable, match="60 s"):
        await request


async def test_a_request_that_meets_a_suspend_waits_for_it_and_wakes_again(world: World) -> None:
    microvm = await world.running(idle_policy=AWAKE)
    token = await _token(world, microvm)
    world.host.faults.set_delay("save_memory", 3.0)
    suspending = asyncio.create_task(world.life.microvms.suspend(CALLER, microvm.microvm_id))
    await world.until(microvm, lambda found: found.state is S.SUSPENDING)
    request = asyncio.create_task(world.life.gate.admit(microvm.endpoint_label, token, 8080))
    await world.advance(4)
    assert isinstance(await request, Admission)
    await suspending
    assert (await world.get(microvm)).state is S.RUNNING


async def test_a_request_to_a_microvm_that_terminates_is_unavailable(world: World) -> None:
    microvm = await world.running(idle_policy=AWAKE)
    token = await _token(world, microvm)
    world.host.faults.set_delay("discard", 3.0)
    await world.life.microvms.terminate(CALLER, microvm.microvm_id)
    with pytest.raises(GateUnavailable):
        await world.life.gate.admit(microvm.endpoint_label, token, 8080)
    await world.advance(3)
    await world.reach(microvm, S.TERMINATED)
    with pytest.raises(GateUnavailable):
        await world.life.gate.admit(microvm.endpoint_label, token, 8080)
    with pytest.raises(GateDenied, match=r"^Token authentication failed$"):
        await world.life.gate.admit("unknown", token, 8080)


async def test_an_application_that_has_ended_is_unavailable_at_once(world: World) -> None:
    microvm = await world.running()
    token = await _token(world, microvm)
    world.host.exit_application(microvm.microvm_id, 0)
    await world.until(microvm, lambda found: found.exited_at is not None)
    with pytest.raises(GateUnavailable):
        await world.life.gate.admit(microvm.endpoint_label, token, 8080)


async def test_a_shell_token_opens_a_shell_for_a_websocket_and_nothing_else(world: World) -> None:
    both = tuple(managed_connector(REGION, name) for name in ("HTTP_INGRESS", "SHELL_INGRESS"))
    microvm = await world.running(ingress=both)
    token = await world.life.tokens.mint_shell(CALLER, microvm.microvm_id, 5)
    assert (await world.life.gate.admit(microvm.endpoint_label, token, 8022)).is_shell
    with pytest.raises(GateUnavailable):
        await world.life.gate.admit(microvm.endpoint_label, token, 8080, is_websocket=False)
    plain = await world.life.gate.admit(microvm.endpoint_label, await _token(world, microvm), 8080)
    assert not plain.is_shell


@pytest.mark.parametrize("names", [("NO_INGRESS",), ("SHELL_INGRESS",)])
async def test_without_http_ingress_no_port_is_open(world: World, names: tuple[str, ...]) -> None:
    microvm = await world.running(ingress=tuple(managed_connector(REGION, name) for name in names))
    with pytest.raises(GateDenied, match=r"^Access to port denied$"):
        await world.life.gate.admit(microvm.endpoint_label, await _token(world, microvm, (ALL_PORTS,)), 8080)


async def test_a_restarted_service_knows_its_tokens_and_microvms(world: World) -> None:
    microvm = await world.running(idle_policy=AWAKE)
    token = await _token(world, microvm)
    await world.restart()
    assert (await world.life.gate.admit(microvm.endpoint_label, token, 8080)).microvm_id == microvm.microvm_id


async def test_the_way_to_a_running_microvm_is_short(world: World) -> None:
    microvm = await world.running()
    token = await _token(world, microvm)
    times = []
    for _ in range(300):
        began = time.perf_counter()
        await world.life.gate.admit(microvm.endpoint_label, token, 8080)
        times.append(time.perf_counter() - began)
    assert statistics.median(times) < 200e-6
