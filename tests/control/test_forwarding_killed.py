"""Forwarding in a service of its own that is killed, stopped and started again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.killed_service import KilledService, killed_service
from support.log_receiver import Receiver, log_receiver
from support.world import World, eventually

SECRET = "t0psecret-token"
GROUP = "flood"
CHUNK = 5000
NOW = int(time.time() * 1000)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with log_receiver() as made:
        yield made


@pytest.fixture
def service(tmp_path: Path) -> Iterator[KilledService]:
    with killed_service("simulated", tmp_path / "data") as made:
        yield made


def settings(receiver: Receiver, kind: str) -> str:
    headers = f'headers = {{ authorization = "Bearer {SECRET}" }}\n' if kind == "otlp" else ""
    return f'[logs.forward]\nkind = "{kind}"\nendpoint_url = "{receiver.url}"\n{headers}'


def put(world: World, begin: int, end: int) -> None:
    """Lines of a client, which are as good as an application's and come in thousands."""
    logs = world.service.client("logs")
    try:
        logs.create_log_group(logGroupName=GROUP)
        logs.create_log_stream(logGroupName=GROUP, logStreamName="s")
    except logs.exceptions.ResourceAlreadyExistsException:
        pass
    for first in range(begin, end, CHUNK):
        logs.put_log_events(logGroupName=GROUP, logStreamName="s", logEvents=[
            {"timestamp": NOW, "message": f"line {number}"}
            for number in range(first, min(end, first + CHUNK))
        ])  # fmt: skip


@pytest.mark.parametrize("kind", ["otlp", "cloudwatch"])
def test_a_killed_service_loses_nothing_and_repeats_its_last_batch_at_most(
        kind: str, receiver: Receiver, service: KilledService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASERVICE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    text = settings(receiver, kind)
    world = service.start(settings=text)
    put(world, 0, 5000)
    eventually(lambda: len(receiver.texts(GROUP)), lambda count: count == 5000)
    # The next batch has arrived, and the service dies before it can have heard so.
    receiver.answers.clear()
    put(world, 5000, 40_000)
    eventually(lambda: receiver.waiting, lambda count: count > 0)
    service.kill()
    receiver.answers.set()
    eventually(lambda: receiver.waiting, lambda count: count == 0)
    arrived = len(receiver.texts(GROUP))
    world = service.start(settings=text)
    put(world, 40_000, 41_000)
    eventually(lambda: receiver.texts(GROUP)[-1], lambda last: last == "line 40999")
    found = receiver.texts(GROUP)
    assert set(found) == {f"line {number}" for number in range(41_000)}
    repeated = [each for each, count in Counter(found).items() if count > 1]
    assert len(repeated) <= arrived - 5000
    assert max(Counter(found).values()) <= 2
    first = list(dict.fromkeys(found))
    assert first == sorted(first, key=lambda each: int(each.split()[1]))


def test_a_service_that_is_stopped_sends_its_last_lines_and_says_nothing_secret(
        receiver: Receiver, service: KilledService) -> None:
    text = settings(receiver, "otlp")
    world = service.start(settings=text)
    receiver.fail(503, f'{{"message": "{SECRET}"}}')
    with world.microvm() as vm:
        world.service.ask("POST", f"/simulated/microvms/{vm.microvm_id}/lines", {"text": "hello", "stream": "stderr"})
        eventually(lambda: world.service.ask("GET", "/stats")["logForwarding"], lambda found: not found["isUp"])
        receiver.failing = []
        service.stop()
        [line] = [line for lines in receiver.lines.values() for line in lines if line.text == "hello"]
        assert line.attributes["log.iostream"] == "stderr"
        assert line.attributes["aws.log.stream.names"][0].endswith(vm.microvm_id)
        said = (service.data_dir / "service.log").read_text()
        assert said.count("log lines are not forwarded and wait on disk: ") == 1
        assert "answered 503: …" in said
        assert said.count("log lines are forwarded again") == 1
        assert SECRET not in said
        service.start(settings=text).images = world.images
        vm.world.client, vm.world.process = service.world.client, service.world.process
