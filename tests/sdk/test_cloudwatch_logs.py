"""Lines of builds and applications through the AWS CLI and boto3, as if CloudWatch Logs had them (spec 9.1)."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from support.world import Microvm, World, eventually

AWS = Path(sys.executable).with_name("aws")


@pytest.fixture
def logs(world: World) -> Any:
    return world.service.client("logs")


@pytest.fixture
def spoken(world: World) -> Iterator[Microvm]:
    """A microVM whose application has said 25 lines and one error."""
    with world.microvm() as vm:
        for number in range(25):
            say(vm, f"line {number:02}")
        say(vm, "ERROR it broke", "stderr")
        eventually(lambda: events_of(vm), lambda found: len(found) == 26)
        yield vm


def say(vm: Microvm, text: str, stream: str = "stdout") -> None:
    vm.world.service.ask("POST", f"/simulated/microvms/{vm.microvm_id}/lines", {"text": text, "stream": stream})


def group_of(vm: Microvm) -> str:
    return f"/aws/lambda-microvms/{vm.describe()['imageArn'].rpartition(':')[2]}"


def stream_of(vm: Microvm) -> str:
    found = vm.describe()
    return f"{found['startedAt']:%Y/%m/%d}[1.0]{vm.microvm_id}"


def events_of(vm: Microvm, **members: Any) -> list[str]:
    pages = vm.world.service.client("logs").get_paginator("filter_log_events").paginate(
        logGroupName=group_of(vm), logStreamNames=[stream_of(vm)], **members)
    try:
        return [event["message"] for page in pages for event in page["events"]]
    except ClientError as error:
        assert error.response["Error"]["Code"] == "ResourceNotFoundException"  # noqa: PT017 - nothing was said yet
        return []


def aws(environment: dict[str, str], *words: str) -> str:
    if not AWS.exists():
        pytest.skip("the AWS CLI is not installed in this environment")
    done = subprocess.run([str(AWS), *words], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_aws_cli_shows_what_an_application_wrote(spoken: Microvm, aws_environment: dict[str, str]) -> None:
    said = aws(aws_environment, "logs", "filter-log-events", "--log-group-name", group_of(spoken), "--interleaved",
               "--start-time", "0", "--log-stream-names", stream_of(spoken), "--output", "json")  # fmt: skip
    lines = [event["message"] for event in json.loads(said)["events"]]
    assert lines == [*(f"line {n:02}" for n in range(25)), "ERROR it broke"]
    found = aws(aws_environment, "logs", "filter-log-events", "--log-group-name", group_of(spoken), "--filter-pattern",
                "ERROR", "--output", "json")  # fmt: skip
    assert [event["message"] for event in json.loads(found)["events"]] == ["ERROR it broke"]
    groups = json.loads(aws(aws_environment, "logs", "describe-log-groups", "--output", "json"))["logGroups"]
    assert group_of(spoken) in [each["logGroupName"] for each in groups]
    streams = json.loads(aws(aws_environment, "logs", "describe-log-streams", "--log-group-name", group_of(spoken),
                             "--output", "json"))["logStreams"]  # fmt: skip
    assert stream_of(spoken) in [each["logStreamName"] for each in streams]


@pytest.fixture(scope="session")
def aws2() -> str:
    """A CLI of version 2, which alone has `logs tail`; it is not on PyPI."""
    places = (shutil.which("aws", path=place) for place in (*os.environ.get("PATH", "").split(":"), "/usr/bin"))
    for found in dict.fromkeys(place for place in places if place is not None and place != str(AWS)):
        said = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=60, check=False)
        if said.stdout.startswith("aws-cli/2."):
            return found
    pytest.skip("no AWS CLI of version 2 is installed, such as Debian's package awscli")


def test_aws_logs_tail_shows_and_follows_what_an_application_writes(
    spoken: Microvm, aws2: str, aws_environment: dict[str, str]
) -> None:
    # Early releases of version 2 know an endpoint by this option alone.
    whole = [aws2, "--endpoint-url", spoken.world.service.api_url, "logs"]
    tail = [*whole, "tail", group_of(spoken), "--log-stream-names", stream_of(spoken), "--since", "1h",
            "--format", "short"]
    expected = [*(f"line {n:02}" for n in range(25)), "ERROR it broke"]
    environment = aws_environment | {"PYTHONUNBUFFERED": "1"}
    done = subprocess.run(tail, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert [line.partition(" ")[2] for line in done.stdout.splitlines()] == expected, done.stderr
    done = subprocess.run([*tail, "--filter-pattern", "ERROR"], env=environment, capture_output=True, text=True,
                          timeout=60, check=False)
    assert [line.partition(" ")[2] for line in done.stdout.splitlines()] == ["ERROR it broke"], done.stderr
    done = subprocess.run([*whole, "filter-log-events", "--log-group-name", group_of(spoken), "--log-stream-names",
                           stream_of(spoken)], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert [event["message"] for event in json.loads(done.stdout)["events"]] == expected, done.stderr

    following = subprocess.Popen([*tail, "--follow"], env=environment, stdout=subprocess.PIPE, text=True)
    assert following.stdout is not None
    try:
        seen = [following.stdout.readline().partition(" ")[2].rstrip("\n") for _ in expected]
        say(spoken, "said later")
        assert [*seen, following.stdout.readline().partition(" ")[2].rstrip("\n")] == [*expected, "said later"]
        following.send_signal(signal.SIGINT)
        assert following.stdout.read() == ""
        following.wait(timeout=30)
    finally:
        following.kill()
        following.wait()
        following.stdout.close()


def test_the_lines_of_a_build_are_in_the_group_of_its_image(world: World, logs: Any) -> None:
    arn = world.image("plain")
    (build,) = world.client.list_microvm_image_builds(imageIdentifier=arn, imageVersion="1.0")["items"]
    found = logs.get_log_events(logGroupName=f"/aws/lambda-microvms/{arn.rpartition(':')[2]}",
                                logStreamName=build["buildId"], startFromHead=True)  # fmt: skip
    assert any(each["message"].startswith("STEP 1/") for each in found["events"])


def test_a_stream_says_when_it_began_and_when_it_was_written_last(spoken: Microvm, logs: Any) -> None:
    place = {"logGroupName": group_of(spoken), "logStreamNamePrefix": stream_of(spoken)}
    (found,) = logs.describe_log_streams(**place)["logStreams"]
    assert found["firstEventTimestamp"] <= found["lastEventTimestamp"]
    assert found["creationTime"] <= found["lastIngestionTime"]
    assert found["arn"].endswith(f":log-group:{group_of(spoken)}:log-stream:{stream_of(spoken)}")
    every = logs.describe_log_streams(logGroupName=group_of(spoken), orderBy="LastEventTime", descending=True)
    assert every["logStreams"][0]["logStreamName"] == stream_of(spoken)


def test_get_log_events_reads_both_ways_and_its_tokens_stay_at_the_ends(spoken: Microvm, logs: Any) -> None:
    place = {"logGroupName": group_of(spoken), "logStreamName": stream_of(spoken), "limit": 10}
    newest = logs.get_log_events(**place)
    assert [each["message"] for each in newest["events"]][-1] == "ERROR it broke"
    before = logs.get_log_events(**place, nextToken=newest["nextBackwardToken"])
    assert [each["message"] for each in before["events"]] == [f"line {n:02}" for n in range(6, 16)]
    again = logs.get_log_events(**place, nextToken=before["nextForwardToken"])
    assert again["events"] == newest["events"]
    end = logs.get_log_events(**place, nextToken=newest["nextForwardToken"])
    assert (end["events"], end["nextForwardToken"]) == ([], newest["nextForwardToken"])
    say(spoken, "one more")
    later = eventually(lambda: logs.get_log_events(**place, nextToken=end["nextForwardToken"])["events"], bool)
    assert [each["message"] for each in later] == ["one more"]


def test_reading_from_the_head_and_pages_give_every_line_once(spoken: Microvm, logs: Any) -> None:
    place = {"logGroupName": group_of(spoken), "logStreamName": stream_of(spoken), "limit": 7}
    found, token = [], {"startFromHead": True}
    for _ in range(4):
        page = logs.get_log_events(**place, **token)
        found += [each["message"] for each in page["events"]]
        token = {"nextToken": page["nextForwardToken"]}
    assert found == events_of(spoken, PaginationConfig={"PageSize": 5})
    assert len(found) == len(set(found)) == 26


def test_lines_are_found_by_time_and_by_terms(spoken: Microvm, logs: Any) -> None:
    place = {"logGroupName": group_of(spoken), "logStreamNames": [stream_of(spoken)]}
    every = logs.filter_log_events(**place)["events"]
    middle = every[10]["timestamp"]
    after = logs.filter_log_events(**place, startTime=middle)["events"]
    before = logs.filter_log_events(**place, endTime=middle)["events"]
    assert before + after == every
    assert len({each["eventId"] for each in every}) == 26
    for pattern, wanted in {"line -00": 24, '"line 07"': 1, "?ERROR ?07": 2, "broke ERROR": 1, "nowhere": 0}.items():
        assert len(logs.filter_log_events(**place, filterPattern=pattern)["events"]) == wanted, pattern
    for pattern in ("{ $.a = 1 }", "[a, b]", "%x%"):
        with pytest.raises(logs.exceptions.InvalidParameterException):
            logs.filter_log_events(**place, filterPattern=pattern)


def test_disabled_logging_leaves_no_stream(world: World, logs: Any) -> None:
    with world.microvm(logging={"disabled": {}}) as vm, world.microvm() as other:
        say(vm, "secret")
        say(other, "shown")
        eventually(lambda: events_of(other), bool)
        with pytest.raises(logs.exceptions.ResourceNotFoundException):
            logs.get_log_events(logGroupName=group_of(vm), logStreamName=stream_of(vm))


def test_applications_may_write_lines_of_their_own_as_aws_lets_them(logs: Any) -> None:
    name = "my/own.group_1"
    logs.create_log_group(logGroupName=name)
    with pytest.raises(logs.exceptions.ResourceAlreadyExistsException):
        logs.create_log_group(logGroupName=name)
    logs.create_log_stream(logGroupName=name, logStreamName="s")
    now = int(time.time() * 1000)
    answer = logs.put_log_events(logGroupName=name, logStreamName="s", logEvents=[
        {"timestamp": 1_000, "message": "of 1970"}, {"timestamp": now - 5, "message": "old"},
        {"timestamp": now, "message": "é\n\ttwo lines"}, {"timestamp": 10**17, "message": "in seconds?"}])  # fmt: skip
    assert answer["rejectedLogEventsInfo"] == {"tooOldLogEventEndIndex": 1, "tooNewLogEventStartIndex": 3}
    assert "rejectedLogEventsInfo" not in logs.put_log_events(logGroupName=name, logStreamName="s", logEvents=[
        {"timestamp": now, "message": "new"}])  # fmt: skip
    found = logs.get_log_events(logGroupName=name, logStreamName="s", startFromHead=True)["events"]
    assert [(each["timestamp"], each["message"]) for each in found] == [
        (now - 5, "old"), (now, "é\n\ttwo lines"), (now, "new")]  # fmt: skip
    logs.put_retention_policy(logGroupName=name, retentionInDays=7)
    (group,) = logs.describe_log_groups(logGroupNamePrefix=name)["logGroups"]
    assert group["retentionInDays"] == 7
    logs.delete_retention_policy(logGroupName=name)
    logs.delete_log_stream(logGroupName=name, logStreamName="s")
    logs.delete_log_group(logGroupName=name)
    for call, members in ((logs.delete_log_group, {}), (logs.describe_log_streams, {}),
                          (logs.filter_log_events, {"logStreamNames": ["s"]})):  # fmt: skip
        with pytest.raises(logs.exceptions.ResourceNotFoundException):
            call(logGroupName=name, **members)


def test_groups_come_in_pages(logs: Any) -> None:
    for number in range(7):
        logs.create_log_group(logGroupName=f"paged/{number}")
    found = [page["logGroups"] for page in logs.get_paginator("describe_log_groups").paginate(
        logGroupNamePrefix="paged/", PaginationConfig={"PageSize": 3})]  # fmt: skip
    assert [len(page) for page in found] == [3, 3, 1]
    assert [each["logGroupName"] for each in itertools.chain(*found)] == [f"paged/{n}" for n in range(7)]


def test_what_is_wrong_is_told_in_cloudwatchs_words(world: World, logs: Any) -> None:
    with pytest.raises(ClientError) as refused:
        logs.put_retention_policy(logGroupName="no good name!", retentionInDays=7)
    assert refused.value.response["Error"]["Code"] == "InvalidParameterException"
    assert re.match(r"1 validation error detected: Value 'no good name!' at 'logGroupName' failed",
                    refused.value.response["Error"]["Message"])  # fmt: skip
    with pytest.raises(ClientError) as unknown:
        logs.describe_queries()
    assert unknown.value.response["Error"]["Code"] == "UnknownOperationException"
    other = world.service.client("logs")
    other.meta.events.register(
        "before-sign", lambda request, **_: request.context.update(signing={"signing_name": "s3"}))
    with pytest.raises(ClientError) as signature:
        other.describe_log_groups()
    assert signature.value.response["Error"]["Code"] == "InvalidSignatureException"
