"""RunMicrovm refuses in AWS's order and words, fills in AWS's defaults, and repeats itself for a client token
(spec 1.3, 1.10, 1.11, 4.1, 10.1)."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from support.microvm_world import ALL_HOOKS, AWAKE, CALLER, IMAGE, REGION, World
from torpor.model.arn import managed_connector
from torpor.model.errors import Conflict, Denied, Invalid, NotFound, QuotaExceeded, TorporError
from torpor.model.microvm import MicrovmState

NC = managed_connector(REGION, "INTERNET_EGRESS")
CASES: list[tuple[dict[str, Any], type[TorporError], str]] = [
    ({"image_identifier": "counter"}, Invalid, "Malformed ARN - doesn't start with 'arn:'"),
    ({"logging": {"cloudWatch": {"logGroup": "g"}}}, Invalid,
     "Logging cannot be enabled without providing executionRoleArn"),
    ({"ingress": ("HTTP_INGRESS",)}, Invalid, "Malformed network connector ARN"),
    ({"ingress": (managed_connector(REGION, "WRONG"),)}, Invalid,
     f"Unrecognized managed network connector ARN: {managed_connector(REGION, 'WRONG')}"),
    ({"egress": (NC, NC)}, Invalid, "Only one egress network connector can be provided"),
    ({"image_identifier": IMAGE + "x"}, NotFound, f"No active version found for MicroVM image {IMAGE}x"),
    ({"image_version": "7.0"}, NotFound, f"No active version found for MicroVM image {IMAGE} and version 7.0"),
    ({"run_hook_payload": "{}"}, Invalid,
     "The run hook must be enabled in the MicroVM image to pass the run hook payload"),
]


@pytest.mark.parametrize(("changes", "error", "text"), CASES, ids=[text[:40] for _, _, text in CASES])
async def test_a_wrong_request_is_refused_with_its_text(
    world: World, changes: dict[str, Any], error: type[TorporError], text: str
) -> None:
    with pytest.raises(error) as refused:
        await world.run(**changes)
    assert str(refused.value) == text
    assert len(world.life.fleet) == 0


async def test_the_memory_ceiling_is_a_quota(world: World) -> None:
    world.memory_limit_mib = 1024
    results = await asyncio.gather(*(world.run() for _ in range(6)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, QuotaExceeded)]
    assert len(refused) == 4
    assert str(refused[0]) == "The base maximum allocated memory limit has been reached for this account."
    assert world.life.microvms.memory_in_use(CALLER.account, REGION) == 1024


async def test_empty_lists_and_disabled_logging_are_as_if_omitted(world: World) -> None:
    microvm = await world.run(ingress=(), egress=(), logging={"disabled": {}})
    assert [arn.rpartition(":")[2] for arn in microvm.ingress_connectors] == ["HTTP_INGRESS"]
    assert [arn.rpartition(":")[2] for arn in microvm.egress_connectors] == ["INTERNET_EGRESS"]


@pytest.mark.parametrize("action", ["lambda:RunMicrovm", "lambda:PassNetworkConnector", "iam:PassRole"])
async def test_what_the_caller_may_not_do_is_denied(world: World, action: str) -> None:
    world.denied.add(action)
    with pytest.raises(Denied):
        await world.run(execution_role_arn="arn:aws:iam::000000000000:role/r")


async def test_a_client_token_repeats_the_same_microvm_in_its_present_state(world: World) -> None:
    first = await world.running(client_token="t-1", idle_policy=AWAKE)
    await world.life.microvms.suspend(CALLER, first.microvm_id)
    again = await world.run(client_token="t-1", idle_policy=AWAKE)
    assert (again.microvm_id, again.state) == (first.microvm_id, MicrovmState.SUSPENDED)
    with pytest.raises(Conflict):
        await world.run(client_token="t-1", idle_policy=AWAKE, maximum_duration=timedelta(seconds=5))
    assert (await world.run(client_token="t-2")).microvm_id != first.microvm_id


async def test_a_repeated_request_is_answered_though_its_image_is_gone(world: World) -> None:
    world.images.hooks = ALL_HOOKS
    first = await world.run(client_token="t-1", run_hook_payload="{}")
    world.images.hooks = type(ALL_HOOKS)()
    assert (await world.run(client_token="t-1", run_hook_payload="{}")).microvm_id == first.microvm_id


async def test_the_same_token_at_the_same_time_makes_one_microvm(world: World) -> None:
    made = await asyncio.gather(*(world.run(client_token="t") for _ in range(8)))
    assert len({microvm.microvm_id for microvm in made}) == 1
    assert len(world.life.fleet) == 1


async def test_a_caller_that_goes_away_leaves_no_half_made_microvm(world: World) -> None:
    running = asyncio.create_task(world.run())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await world.settle()
    for live in world.life.fleet:
        assert live.state is MicrovmState.RUNNING
