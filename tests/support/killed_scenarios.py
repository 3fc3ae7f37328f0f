"""What a service is killed in: for each action what is there before it, and what must be true after the next start.

A scenario is pickled on its way to the process that is to die, so all that it consists of are functions of a module.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from support.killed import ACCOUNT, ARN, CALLER, PATIENCE, C, Images, S, Scenario, Service, request
from torpor.control.reasons import RECOVERED
from torpor.model.connector import UpdateStatus
from torpor.model.errors import NotFound, SaveFailed, VmmFailed
from torpor.model.hooks import Hook
from torpor.model.microvm import Microvm
from torpor.model.paging import PageRequest


async def _build(found: Service) -> None:
    await found.build()


async def _run(found: Service) -> None:
    found.remember(await _running(found), "yes")


async def _running(found: Service) -> Microvm:
    made = await found.run()
    deadline = time.monotonic() + PATIENCE
    while (await found.control.microvms.get(CALLER, made.microvm_id)).state is not S.RUNNING:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)
    return made


async def _suspend(found: Service) -> None:
    await found.control.microvms.suspend(CALLER, (await found.microvm()).microvm_id)


async def _resume(found: Service) -> None:
    await found.control.microvms.resume(CALLER, (await found.microvm()).microvm_id)


async def _recover(found: Service) -> None:
    await found.control.microvms.recover(CALLER, (await found.microvm()).microvm_id)


async def _terminate(found: Service) -> None:
    await found.control.microvms.terminate(CALLER, (await found.microvm()).microvm_id)


async def _update(found: Service) -> None:
    await found.control.images.update(CALLER, ARN, request(), "update-1")


async def _delete_image(found: Service) -> None:
    await found.control.images.delete(CALLER, ARN)


async def _delete_version(found: Service) -> None:
    await found.control.images.delete_version(CALLER, ARN, "1.0")


def _connector(token: str) -> dict[str, Any]:
    vpc = {"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"], "NetworkProtocol": "IPv4",
           "AssociatedComputeResourceTypes": ["MicroVm"]}
    return {"Name": "private", "ClientToken": token, "OperatorRole": f"arn:aws:iam::{ACCOUNT}:role/operator",
            "Configuration": {"VpcEgressConfiguration": vpc}}


async def _connect(found: Service) -> None:
    await found.control.connectors.create(CALLER, _connector("connect-1"))


async def _update_connector(found: Service) -> None:
    changed = _connector("connect-2")
    del changed["Name"]
    changed["Configuration"]["VpcEgressConfiguration"]["SubnetIds"] = ["subnet-2"]
    await found.control.connectors.update(CALLER, "private", changed)


async def _disconnect(found: Service) -> None:
    await found.control.connectors.delete(CALLER, "private")


async def _launch_fails(found: Service) -> None:
    found.host.faults.fail_step("guest_restored", VmmFailed("broken"))
    await found.run()


async def _suspend_fails(found: Service) -> None:
    found.host.faults.fail_step("publish", SaveFailed("disk full"))
    await _suspend(found)


async def _suspend_hook_fails(found: Service) -> None:
    found.host.faults.fail_hook(Hook.SUSPEND, status=500)
    await _suspend(found)


async def _resume_fails(found: Service) -> None:
    found.host.faults.fail_step("unpause", VmmFailed("broken"))
    await _resume(found)


async def _built(found: Service) -> None:
    """One image with one version, and asking again makes no second one."""
    await _build(found)
    await found.rest()
    [image] = await found.images()
    assert (image.state, image.latest_active_version) == (Images.CREATED, "1.0")
    builds = await found.control.images.list_builds(CALLER, ARN, "1.0", None, None, None, PageRequest())
    assert [each.state for each in builds.items] == ["SUCCESSFUL"]
    assert (await _running(found)).image_version == "1.0"


async def _updated(found: Service) -> None:
    [image] = await found.images()
    assert (image.state, image.latest_active_version) == (Images.UPDATED, "2.0")
    assert (await _running(found)).image_version == "2.0"


async def _launched(found: Service) -> None:
    """It runs, and asking again with the same token finds the same one, or makes the only one."""
    asked = await _running(found)
    microvm = await found.microvm()
    assert (microvm.state, microvm.microvm_id) == (S.RUNNING, asked.microvm_id)


async def _launched_or_not(found: Service) -> None:
    for microvm in await found.microvms():
        if microvm.state is S.TERMINATED:
            assert microvm.state_reason == "The MicroVM could not be launched: broken"
        else:
            assert microvm.state is S.RUNNING, microvm
    assert len(await found.microvms()) <= 1


async def _asleep(found: Service) -> None:
    microvm = await found.microvm()
    assert microvm.state is S.SUSPENDED, microvm
    await _awake(found)


async def _awake(found: Service) -> None:
    """Whatever state it is in, it can be woken and has lost nothing."""
    await _resume(found)
    await found.rest()
    microvm = await found.microvm()
    assert microvm.state is S.RUNNING, microvm
    assert found.remembered(microvm) == {"kept": "yes"}


async def _asleep_or_recovered(found: Service) -> None:
    """Its memory is lost when the recovery got through, and as it was when it did not."""
    microvm = await found.microvm()
    if microvm.state is S.RUNNING:
        assert microvm.state_reason == RECOVERED
        assert found.remembered(microvm) == {}
    else:
        await _asleep(found)


async def _asleep_or_awake_with_reason(found: Service) -> None:
    microvm = await found.microvm()
    if microvm.state is S.RUNNING:
        assert microvm.state_reason == "The MicroVM could not be suspended: disk full"
    await _awake(found)


async def _ended_or_asleep(found: Service) -> None:
    microvm = await found.microvm()
    if microvm.state is S.TERMINATED:
        assert microvm.state_reason is not None
        assert microvm.state_reason.startswith("Suspend lifecycle hook returned HTTP status 500.")
    else:
        await _asleep(found)


async def _ended(found: Service) -> None:
    microvm = await found.microvm()
    assert (microvm.state, microvm.state_reason) == (S.TERMINATED, "Success.")


async def _no_image(found: Service) -> None:
    assert await found.images() == []
    try:
        await found.run()
    except NotFound:
        return
    raise AssertionError("a deleted image was run")


async def _one_version(found: Service) -> None:
    listed = await found.control.images.list_versions(CALLER, ARN, PageRequest())
    assert [each.version for each in listed.items] == ["2.0"]
    assert (await _running(found)).image_version == "2.0"


async def _connected(found: Service) -> None:
    [one] = await found.connectors()
    assert (one.state, one.latest_version) == (C.ACTIVE, 1)
    assert (await found.control.connectors.create(CALLER, _connector("connect-1"))).id == one.id


async def _connected_anew(found: Service) -> None:
    [one] = await found.connectors()
    assert (one.state, one.latest_version, one.last_update_status) == (C.ACTIVE, 2, UpdateStatus.SUCCESSFUL)


async def _disconnected(found: Service) -> None:
    assert await found.connectors() == []


SCENARIOS = {each.name: each for each in (
    Scenario("build", _build, _built),
    Scenario("update", _update, _updated, (_build,)),
    Scenario("delete image", _delete_image, _no_image, (_build,)),
    Scenario("delete version", _delete_version, _one_version, (_build, _update)),
    Scenario("launch", _run, _launched, (_build,)),
    Scenario("suspend", _suspend, _asleep, (_build, _run)),
    Scenario("resume", _resume, _awake, (_build, _run, _suspend)),
    Scenario("terminate", _terminate, _ended, (_build, _run)),
    Scenario("terminate asleep", _terminate, _ended, (_build, _run, _suspend)),
    Scenario("launch that fails", _launch_fails, _launched_or_not, (_build,)),
    Scenario("suspend that fails", _suspend_fails, _asleep_or_awake_with_reason, (_build, _run)),
    Scenario("suspend whose hook fails", _suspend_hook_fails, _ended_or_asleep, (_build, _run)),
    Scenario("resume that fails", _resume_fails, _awake, (_build, _run, _suspend)),
    Scenario("recover", _recover, _asleep_or_recovered, (_build, _run, _suspend)),
    Scenario("connect", _connect, _connected),
    Scenario("update connector", _update_connector, _connected_anew, (_connect,)),
    Scenario("disconnect", _disconnect, _disconnected, (_connect,)),
)}  # fmt: skip
