"""The main job through boto3 and HTTPS, the same on every engine (spec 1.2, 1.6, 4.1, 5, 6)."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from support.world import World, application_zip, eventually, zip_of

pytestmark = pytest.mark.timeout(300)
IDLE = {"maxIdleDurationSeconds": 60, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True}


def test_an_image_build_leaves_a_version_and_a_build_with_sizes(world: World) -> None:
    arn = world.image("plain")
    image = world.client.get_microvm_image(imageIdentifier=arn)
    assert (image["state"], image["latestActiveImageVersion"]) == ("CREATED", "1.0")
    place = {"imageIdentifier": arn, "imageVersion": "1.0"}
    (summary,) = world.client.list_microvm_image_builds(**place)["items"]
    build = world.client.get_microvm_image_build(**place, buildId=summary["buildId"])
    assert build["buildState"] == "SUCCESSFUL"
    assert all(size > 0 for name, size in build["snapshotBuild"].items() if name != "diskSnapshotSizeInBytes")
    assert arn in [each["imageArn"] for each in world.client.list_microvm_images()["items"]]


def test_a_launched_microvm_answers_through_its_endpoint(world: World) -> None:
    with world.microvm() as vm:
        answer = vm.http.post("/some/path?a=b", content=b"12345", headers={"traceparent": "00-1-2-3"})
        assert answer.status_code == 200
        assert answer.headers["x-amzn-requestid"]
        seen = answer.json()
        expected = {"port": 8080, "method": "POST", "path": "/some/path", "query": "a=b", "body_bytes": 5}
        assert {name: seen[name] for name in expected} == expected
        assert seen["headers"]["traceparent"] == "00-1-2-3"
        assert seen["headers"]["host"].split(":")[0] == vm.endpoint.split(":")[0]
        assert not [name for name in seen["headers"] if name.startswith(("x-aws-proxy", "x-forwarded", "x-envoy"))]


def test_a_request_sent_right_after_run_is_held_until_the_microvm_runs(world: World) -> None:
    with world.microvm(until="") as vm:
        assert vm.http.get("/").status_code == 200


def test_every_microvm_of_an_image_has_a_memory_of_its_own(world: World) -> None:
    with world.microvm() as one, world.microvm() as two:
        one.http.put("/values/name", content="one")
        two.http.put("/values/name", content="two")
        assert one.http.get("/values/name").text == "one"
        assert two.http.get("/values/name").text == "two"


def test_memory_survives_suspend_and_resume_again_and_again(world: World) -> None:
    with world.microvm() as vm:
        for number in range(3):
            vm.http.put(f"/values/n{number}", content=str(number))
            vm.suspend()
            assert vm.describe().get("stateReason") is None
            vm.resume()
            assert [vm.http.get(f"/values/n{n}").text for n in range(number + 1)] == [str(n) for n in range(number + 1)]


def test_a_request_wakes_a_suspended_microvm_with_auto_resume(world: World) -> None:
    with world.microvm(idlePolicy=IDLE) as vm:
        vm.http.put("/values/x", content="41")
        vm.suspend()
        assert vm.http.get("/values/x").text == "41"
        assert vm.state == "RUNNING"


def test_a_request_does_not_wake_a_suspended_microvm_without_auto_resume(world: World) -> None:
    with world.microvm(idlePolicy=IDLE | {"autoResumeEnabled": False}) as vm:
        vm.suspend()
        answer = vm.http.get("/")
        assert (answer.status_code, answer.content) == (502, b"")
        assert vm.state == "SUSPENDED"


def test_many_requests_to_a_sleeping_microvm_are_all_answered_after_one_wake(world: World) -> None:
    with world.microvm(idlePolicy=IDLE) as vm:
        vm.suspend()
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda n: vm.http.get(f"/r{n}"), range(8)))
        assert [answer.status_code for answer in answers] == [200] * 8
        resumes = [each for each in vm.timeline() if each["action"] == "resume" and each["step"] == "restore_memory"]
        assert len(resumes) <= 1


def test_a_wrong_token_gets_403_and_does_not_wake(world: World) -> None:
    with world.microvm(idlePolicy=IDLE) as vm, world.microvm() as other:
        vm.suspend()
        foreign = other.token()
        for headers, text in (
            ({}, "Request missing authentication"),
            ({"X-aws-proxy-auth": "nonsense"}, "Request missing authentication"),
            ({"X-aws-proxy-auth": foreign}, "Token authentication failed"),
        ):
            with world.http(vm.endpoint, headers) as http:
                answer = http.get("/")
                assert (answer.status_code, answer.text) == (403, text)
                assert answer.headers["cache-control"] == "private, no-store"
        assert vm.state == "SUSPENDED"


def test_a_token_opens_only_its_ports(world: World) -> None:
    with world.microvm() as vm:
        token = vm.token({"range": {"startPort": 8000, "endPort": 8079}})
        with world.http(vm.endpoint, {"X-aws-proxy-auth": token}) as http:
            answer = http.get("/")
            assert (answer.status_code, answer.text) == (403, "Access to port denied")
            # Nothing listens there, or the stub answers: not a denial in either case.
            assert http.get("/", headers={"X-aws-proxy-port": "8001"}).status_code in (200, 502)


def test_a_token_minted_while_suspended_works_after_the_wake(world: World) -> None:
    with world.microvm(idlePolicy=IDLE) as vm:
        vm.suspend()
        with world.http(vm.endpoint, {"X-aws-proxy-auth": vm.token({"port": 8080})}) as http:
            assert http.get("/").status_code == 200


def test_suspend_and_resume_in_the_state_they_lead_to_are_accepted_and_change_nothing(world: World) -> None:
    with world.microvm() as vm:
        world.client.resume_microvm(microvmIdentifier=vm.microvm_id)
        assert vm.state == "RUNNING"
        vm.suspend()
        world.client.suspend_microvm(microvmIdentifier=vm.microvm_id)
        assert vm.state == "SUSPENDED"


def test_a_terminated_microvm_stays_readable_and_cannot_change(world: World) -> None:
    with world.microvm() as vm:
        ended = vm.terminate()
        assert ended["stateReason"] == "Success."
        assert ended["terminatedAt"] >= ended["startedAt"]
        world.client.terminate_microvm(microvmIdentifier=vm.microvm_id)
        with pytest.raises(ClientError) as refused:
            world.client.suspend_microvm(microvmIdentifier=vm.microvm_id)
        error = refused.value.response["Error"]
        assert error["Code"] == "ValidationException"
        assert error["Message"] == f"The MicroVM {vm.microvm_id} has been terminated and its state cannot be changed."
        assert vm.http.get("/").status_code == 502


def test_a_suspended_microvm_is_terminated_without_being_resumed(world: World) -> None:
    with world.microvm("hooks") as vm:
        vm.suspend()
        before = [each["action"] for each in vm.timeline()]
        vm.terminate()
        assert "resume" not in [each["action"] for each in vm.timeline()][len(before) :]


def test_list_shows_exactly_the_members_of_the_real_list(world: World) -> None:
    with world.microvm() as vm:
        items = world.client.get_paginator("list_microvms").paginate(imageIdentifier=world.image("plain"))
        found = {each["microvmId"]: each for page in items for each in page["items"]}
        assert set(found[vm.microvm_id]) == {"microvmId", "state", "imageArn", "imageVersion", "startedAt"}


def test_maximum_duration_ends_a_microvm(world: World) -> None:
    with world.microvm(maximumDurationInSeconds=8) as vm:
        assert vm.state == "RUNNING"
        world.pass_time(8)
        vm.wait("TERMINATED", timeout=10)


def test_suspended_duration_zero_terminates_on_suspend(world: World) -> None:
    with world.microvm(idlePolicy=IDLE | {"suspendedDurationSeconds": 0}) as vm:
        world.client.suspend_microvm(microvmIdentifier=vm.microvm_id)
        vm.wait("TERMINATED")


def test_suspended_duration_ends_a_sleeping_microvm(world: World) -> None:
    with world.microvm(idlePolicy=IDLE | {"suspendedDurationSeconds": 3}) as vm:
        vm.suspend()
        world.pass_time(3)
        vm.wait("TERMINATED", timeout=10)


def test_the_application_ending_ends_the_microvm_with_its_exit_code(world: World) -> None:
    with world.microvm() as vm:
        assert vm.http.post("/exit/7").status_code == 200
        eventually(lambda: vm.http.get("/").status_code, lambda status: status == 502, 5)
        world.pass_time(16)
        assert vm.wait("TERMINATED", timeout=20)["stateReason"] == "Container Stopped with Exit Code: 7"


def test_server_sent_events_arrive_one_by_one(world: World) -> None:
    with world.microvm() as vm, vm.http.stream("GET", "/events?count=3&every=0.3") as answer:
        arrivals = [(line, time.monotonic()) for line in answer.iter_lines() if line.startswith("data")]
        assert [line for line, _ in arrivals] == ["data: event 1", "data: event 2", "data: event 3"]
        assert arrivals[2][1] - arrivals[0][1] > 0.3


def test_http2_clients_are_served(world: World) -> None:
    with world.microvm() as vm:
        headers = {"X-aws-proxy-auth": vm.token()}
        with httpx.Client(base_url=f"https://{vm.endpoint}", http2=True, verify=world.tls, headers=headers,
                          trust_env=False) as http:  # fmt: skip
            answer = http.get("/")
            assert (answer.status_code, answer.http_version) == (200, "HTTP/2")


def test_a_websocket_with_subprotocol_authentication_echoes(world: World) -> None:
    with world.microvm() as vm:
        authentication = f"lambda-microvms.authentication.{vm.token()}"
        offered = [*map(Subprotocol, ("lambda-microvms", authentication, "lambda-microvms.port.8080"))]
        with connect(f"wss://{vm.endpoint}/ws", ssl=world.tls, subprotocols=offered, proxy=None) as socket:
            assert socket.subprotocol == "lambda-microvms"
            socket.send("hello")
            assert socket.recv(10) == "hello"
            socket.send(b"\x00" * 70_000)
            assert socket.recv(10) == b"\x00" * 70_000
        offered.append(Subprotocol("mine"))
        with connect(f"wss://{vm.endpoint}/ws", ssl=world.tls, subprotocols=offered, proxy=None) as socket:
            assert socket.subprotocol == "mine"


def test_a_suspend_during_requests_loses_none_of_them(world: World) -> None:
    with world.microvm(idlePolicy=IDLE) as vm:
        statuses: list[int] = []
        stop = threading.Event()

        def ask() -> None:
            with world.http(vm.endpoint, {"X-aws-proxy-auth": vm.token()}) as http:
                while not stop.is_set():
                    statuses.append(http.get("/").status_code)
                    time.sleep(0.02)

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.3)
        world.client.suspend_microvm(microvmIdentifier=vm.microvm_id)
        time.sleep(1.0)
        stop.set()
        asking.join()
        assert set(statuses) == {200}


def test_run_with_the_same_client_token_is_the_same_microvm(world: World) -> None:
    def run(**members: Any) -> str:
        answer = world.client.run_microvm(imageIdentifier=world.image("plain"), clientToken="once-only", **members)
        return str(answer["microvmId"])

    first = run()
    try:
        assert run() == first
        with pytest.raises(world.client.exceptions.ConflictException):
            run(maximumDurationInSeconds=60)
    finally:
        world.client.terminate_microvm(microvmIdentifier=first)


def test_a_broken_dockerfile_fails_the_build_with_its_reason_and_leaves_the_log(world: World) -> None:
    arn, version = world.create_image(zip_of({"Dockerfile": "FROM torpor/python:3.11\nRUN exit 1\n"}))
    assert (version["state"], version["status"]) == ("FAILED", "INACTIVE")
    image = world.client.get_microvm_image(imageIdentifier=arn)
    assert (image["state"], image["latestFailedImageVersion"]) == ("CREATE_FAILED", "1.0")
    (build,) = world.client.list_microvm_image_builds(imageIdentifier=arn, imageVersion="1.0")["items"]
    assert build["stateReason"] == "The container image build failed."
    with pytest.raises(world.client.exceptions.ResourceNotFoundException) as refused:
        world.client.run_microvm(imageIdentifier=arn)
    assert refused.value.response["Error"]["Message"] == f"No active version found for MicroVM image {arn}"
    lines = list(world.service.follow(f"/images/{arn.rpartition(':')[2]}/versions/1.0/logs"))
    assert lines
    world.client.delete_microvm_image(imageIdentifier=arn)


def test_an_image_without_microvms_can_be_deleted_and_one_with_cannot(world: World) -> None:
    arn, version = world.create_image(application_zip())
    assert version["state"] == "SUCCESSFUL"
    world.images["deleted"] = arn
    with world.microvm("deleted") as vm:
        with pytest.raises(ClientError) as refused:
            world.client.delete_microvm_image(imageIdentifier=arn)
        assert refused.value.response["Error"]["Message"] == "Cannot delete microvm image with running microvms."
        vm.terminate()
    assert world.client.delete_microvm_image(imageIdentifier=arn)["state"] == "DELETING"

    def is_gone() -> bool:
        try:
            world.client.get_microvm_image(imageIdentifier=arn)
        except world.client.exceptions.ResourceNotFoundException:
            return True
        return False

    eventually(is_gone, bool, 30)

