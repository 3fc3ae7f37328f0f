"""Torpor's own routes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from botocore.awsrequest import AWSRequest

from support.api_wire import HOST, signed
from support.api_world import ApiWorld, api_world, exchange
from torpor.api.extras import EXTRAS
from torpor.model.ids import MicrovmId


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[ApiWorld]:
    async with api_world(tmp_path) as made:
        yield made


def lines(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in body.splitlines()]


@pytest.mark.parametrize(("method", "uri"), [(method, uri) for method, uri, _ in EXTRAS])
async def test_each_route_wants_a_signature(world: ApiWorld, method: str, uri: str) -> None:
    path = uri.replace("{", "").replace("}", "")
    status, headers, _ = await exchange(world.app, method, path, "", [], b"")
    assert (status, headers["x-amzn-errortype"]) == (403, "MissingAuthenticationTokenException")


async def test_microvms_are_listed_with_their_endpoints(world: ApiWorld) -> None:
    microvm_id = await world.run_microvm(await world.create_image(resources=[{"minimumMemoryInMiB": 512}]))
    listed = (await world.ask("GET", "/torpor/v1/microvms?maxResults=10")).document
    assert listed["nextToken"] is None
    item = listed["items"][0]
    assert (item["microvmId"], item["state"], item["memoryInMiB"]) == (microvm_id, "RUNNING", 512)
    assert item["endpoint"].endswith(".localhost")
    assert item["endsAt"] - item["startedAt"] == 28800


@pytest.mark.parametrize("query", ["maxResults=0", "maxResults=x", "maxResults=51", "nextToken=x"])
async def test_a_bad_page_is_refused(world: ApiWorld, query: str) -> None:
    assert (await world.ask("GET", f"/torpor/v1/microvms?{query}")).status == 400


async def test_the_timeline_tells_each_step(world: ApiWorld) -> None:
    microvm_id = await world.run_microvm(await world.create_image())
    entries = (await world.ask("GET", f"/torpor/v1/microvms/{microvm_id}/timeline")).document["items"]
    assert {"at", "action", "step", "seconds", "cause"} == set(entries[0])
    assert "launch" in {entry["action"] for entry in entries}


async def test_lines_of_an_application_are_read_behind_a_sequence(world: ApiWorld) -> None:
    microvm_id = await world.run_microvm(await world.create_image(), executionRoleArn=(
        "arn:aws:iam::000000000000:role/r"))
    path = f"/torpor/v1/microvms/{microvm_id}/logs"
    for text in ("one", "two"):
        world_answer = await world.ask("POST", f"/torpor/v1/simulated/microvms/{microvm_id}/lines", {"text": text})
        assert world_answer.status == 200
    async with asyncio.timeout(10):
        while len(found := lines((await world.ask("GET", path)).body)) < 2:
            await asyncio.sleep(0.01)
    assert [line["text"] for line in found] == ["one", "two"]
    assert found[0]["source"] == "stdout"
    rest = lines((await world.ask("GET", f"{path}?after={found[0]['sequence']}")).body)
    assert [line["text"] for line in rest] == ["two"]


async def test_followed_lines_end_with_the_microvm(world: ApiWorld) -> None:
    microvm_id = await world.run_microvm(await world.create_image(), executionRoleArn=(
        "arn:aws:iam::000000000000:role/r"))
    following = asyncio.create_task(world.ask("GET", f"/torpor/v1/microvms/{microvm_id}/logs?follow=true"))
    await asyncio.sleep(0.05)
    world.host.write_line(MicrovmId(microvm_id), "while it is followed")
    await asyncio.sleep(0.05)
    await world.call("TerminateMicrovm", microvmIdentifier=microvm_id)
    async with asyncio.timeout(20):
        answer = await following
    assert "while it is followed" in [line["text"] for line in lines(answer.body)]
    assert answer.headers["content-type"] == "application/x-ndjson"


async def test_following_ends_when_the_client_leaves(world: ApiWorld) -> None:
    microvm_id = await world.run_microvm(await world.create_image(), executionRoleArn=(
        "arn:aws:iam::000000000000:role/r"))
    request = AWSRequest("GET", f"http://{HOST}/torpor/v1/microvms/{microvm_id}/logs?follow=true", data=b"")
    signed(request, world.keys)
    messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b""}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(name.lower().encode(), value.encode()) for name, value in request.headers.items()]
    async with asyncio.timeout(5):
        await world.app({"type": "http", "method": "GET", "raw_path": request.url.partition("7060")[2].partition("?")[
            0].encode(), "query_string": b"follow=true", "headers": [*headers, (b"host", HOST.encode())]},
            receive, send)
    assert sent[0]["status"] == 200


async def test_build_lines_are_followed_to_the_end_of_the_build(world: ApiWorld) -> None:
    world.host.faults.set_delay("build_container", 0.3)
    creating = asyncio.create_task(world.create_image())
    await world.until("ListMicrovmImages", lambda found: bool(found["items"]))
    answer = await world.ask("GET", "/torpor/v1/images/counter/versions/1.0/logs?follow=true")
    await creating
    assert answer.status == 200
    assert any("FROM" in line["text"] for line in lines(answer.body))


async def test_logs_of_nothing_are_not_found(world: ApiWorld) -> None:
    assert (await world.ask("GET", "/torpor/v1/images/no/versions/1.0/logs")).status == 404
    assert (await world.ask("GET", "/torpor/v1/microvms/no/logs")).status == 404


async def test_limits_say_what_is_used_and_what_frees_it(world: ApiWorld) -> None:
    await world.create_image()
    limits = {limit["name"]: limit for limit in (await world.ask("GET", "/torpor/v1/limits")).document["items"]}
    assert (limits["images"]["limit"], limits["images"]["used"]) == (100, 1)
    assert limits["images"]["frees"] == "Delete images."


async def test_stats_are_the_machines(world: ApiWorld) -> None:
    stats = (await world.ask("GET", "/torpor/v1/stats")).document["stats"]
    assert stats["engine"] == "simulated"
    assert stats["cores"] > 0


async def test_eight_hours_pass_in_a_moment(world: ApiWorld) -> None:
    microvm_id = await world.run_microvm(await world.create_image())
    answer = await world.ask("POST", "/torpor/v1/simulated/clock", {"seconds": 28_801})
    assert answer.status == 200
    ended = await world.until("GetMicrovm", lambda found: found["state"] == "TERMINATED", microvmIdentifier=microvm_id)
    assert ended.document["terminatedAt"] - ended.document["startedAt"] == pytest.approx(28_800, abs=5)


async def test_an_application_told_to_exit_ends_its_microvm(world: ApiWorld) -> None:
    """Spec 1.6."""
    microvm_id = await world.run_microvm(await world.create_image())
    await world.ask("POST", f"/torpor/v1/simulated/microvms/{microvm_id}/exit", {"code": 3})
    await world.ask("POST", "/torpor/v1/simulated/clock", {"seconds": 20})
    ended = await world.until("GetMicrovm", lambda found: found["state"] == "TERMINATED", microvmIdentifier=microvm_id)
    assert ended.document["stateReason"] == "Container Stopped with Exit Code: 3"


async def test_an_application_is_told_how_to_answer(world: ApiWorld) -> None:
    microvm_id = await world.run_microvm(await world.create_image())
    path = f"/torpor/v1/simulated/microvms/{microvm_id}/answers"
    assert (await world.ask("POST", path, {"status": 503, "times": 1})).status == 200
    assert [await world.host.faults.answer(MicrovmId(microvm_id)) for _ in range(2)] == [503, None]
    for document in ({"status": 101}, {"status": "x"}, {"seconds": -1}, {"times": True}):
        assert (await world.ask("POST", path, document)).status == 400


async def test_a_vmm_that_is_killed_ends_its_microvm(world: ApiWorld) -> None:
    microvm_id = await world.run_microvm(await world.create_image())
    assert (await world.ask("POST", f"/torpor/v1/simulated/microvms/{microvm_id}/kill")).status == 200
    await world.until("GetMicrovm", lambda found: found["state"] == "TERMINATED", microvmIdentifier=microvm_id)


async def test_a_hook_told_to_fail_fails_the_launch_until_mended(world: ApiWorld) -> None:
    """Spec 1.9."""
    hooks = {"port": 9000, "microvmImageHooks": {"ready": "ENABLED"}, "microvmHooks": {"run": "ENABLED"}}
    arn = await world.create_image(hooks=hooks)
    assert (await world.ask("POST", "/torpor/v1/simulated/faults", {"hook": "run", "status": 400})).status == 200
    made = await world.call("RunMicrovm", imageIdentifier=arn)
    ended = await world.until("GetMicrovm", lambda found: found["state"] == "TERMINATED",
                              microvmIdentifier=made.parsed["microvmId"])
    assert ended.document["stateReason"].startswith("Run lifecycle hook returned HTTP status 400.")
    assert (await world.ask("DELETE", "/torpor/v1/simulated/faults")).status == 200
    await world.run_microvm(arn)


@pytest.mark.parametrize("document", [
    {}, {"step": 1}, {"step": "pause", "error": "Other"}, {"step": "pause", "seconds": -1}, {"hook": "other"},
    {"hook": "run", "status": 42}, {"hook": "run", "failure": "x"}, {"hook": "run", "seconds": "x"},
    {"hook": "run", "microvmId": 1}, {"hook": "run", "times": True}, {"hook": []}, b"[]", b"{", b"\xff",
])
async def test_a_fault_that_makes_no_sense_is_refused(world: ApiWorld, document: Any) -> None:
    assert (await world.ask("POST", "/torpor/v1/simulated/faults", document)).status == 400


@pytest.mark.parametrize("document", [{}, {"seconds": "x"}, {"seconds": -1}, {"seconds": 1e300}, {"seconds": True}])
async def test_the_clock_moves_by_a_number_only(world: ApiWorld, document: Any) -> None:
    assert (await world.ask("POST", "/torpor/v1/simulated/clock", document)).status == 400
