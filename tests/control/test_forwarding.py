"""Lines of builds and applications on the simulated engine, forwarded to a server that speaks what they are sent in."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from support.api_world import ApiWorld, api_world, image_arn, served
from support.log_receiver import Receiver, log_receiver
from torpor.config import ForwardSettings, LogSettings
from torpor.control import forwarding
from torpor.model.ids import MicrovmId
from torpor.model.logs import owned

SECRET = "t0psecret-token"
KINDS = ("cloudwatch", "otlp")
GROUP = "/aws/lambda-microvms/counter"
KEPT = owned("000000000000", "us-east-1", GROUP)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASERVICE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with log_receiver() as made:
        yield made


@pytest.fixture(autouse=True)
def _nothing_secret_is_said(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO)
    yield
    assert all(SECRET not in f"{record.getMessage()} {record.__dict__}" for record in caplog.records)


def settings(receiver: Receiver, kind: str, **more: Any) -> LogSettings:
    headers = {"authorization": f"Bearer {SECRET}"} if kind == "otlp" else {}
    forward = ForwardSettings(kind, receiver.url, headers=headers)
    forward.check()
    return LogSettings(forward=forward, **more)


@asynccontextmanager
async def forwarding_world(path: Path, receiver: Receiver, kind: str = "otlp", **more: Any) -> AsyncIterator[ApiWorld]:
    async with api_world(path, logs=settings(receiver, kind, **more)) as made:
        yield made


async def run(world: ApiWorld, name: str = "counter", **members: Any) -> MicrovmId:
    answer = await world.call("RunMicrovm", imageIdentifier=image_arn(name), **members)
    assert answer.status == 200, answer.body
    microvm_id = MicrovmId(answer.parsed["microvmId"])
    await world.until("GetMicrovm", lambda found: found["state"] == "RUNNING", microvmIdentifier=microvm_id)
    return microvm_id


async def passes(world: ApiWorld, is_so: Callable[[], bool], step: float = 1.0) -> None:
    """Let time pass until it is so."""
    async with asyncio.timeout(30):
        while not is_so():
            await world.clock.advance(timedelta(seconds=step))
            await asyncio.sleep(0.005)


async def write(world: ApiWorld, *texts: str, group: str = KEPT, stream: str = "s") -> None:
    await world.control.logs.append(group, stream, [(world.clock.now(), "stdout", text) for text in texts])


def is_done(world: ApiWorld) -> bool:
    """Everything that was written has been delivered or refused, and kept as such."""
    forwarding = world.control.forwarding
    assert forwarding is not None
    return forwarding.state().waiting_streams == 0 and not forwarding._unsaved


def numbers(begin: int, end: int) -> list[str]:
    return [f"line {number}" for number in range(begin, end)]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "torpor.control.forwarding"]


@pytest.mark.parametrize("kind", KINDS)
async def test_lines_of_builds_and_applications_arrive_in_order_under_the_names_of_aws(
        kind: str, receiver: Receiver, tmp_path: Path) -> None:
    async with forwarding_world(tmp_path, receiver, kind) as world:
        await world.create_image()
        one, two = await run(world), await run(world)
        for number in range(300):
            world.host.write_line(one, f"one {number}")
            world.host.write_line(two, f"two {number}", "stderr")
        await passes(world, lambda: len([text for text in receiver.texts() if text[:3] in ("one", "two")]) == 600)
        day = world.clock.now().strftime("%Y/%m/%d")
        for microvm_id, word in ((one, "one"), (two, "two")):
            lines = receiver.lines[GROUP, f"{day}[1.0]{microvm_id}"]
            assert [line.text for line in lines] == [f"{word} {number}" for number in range(300)]
            if kind == "otlp":
                assert {line.attributes["log.iostream"] for line in lines} == {
                    "stdout" if word == "one" else "stderr"}
                assert lines[0].attributes["cloud.account.id"] == "000000000000"
        (build,) = {stream for _, stream in receiver.lines} - {f"{day}[1.0]{each}" for each in (one, two)}
        assert "the application started" in [line.text for line in receiver.lines[GROUP, build]]
    if kind == "otlp":
        assert all(headers["authorization"] == f"Bearer {SECRET}" for headers in receiver.headers)


async def test_disabled_logging_is_not_forwarded(receiver: Receiver, tmp_path: Path) -> None:
    async with forwarding_world(tmp_path, receiver) as world:
        await world.create_image()
        silent = await run(world, logging={"disabled": {}})
        world.host.write_line(silent, "private")
        world.host.write_line(await run(world), "shown")
        await passes(world, lambda: "shown" in receiver.texts())
    assert "private" not in receiver.texts()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_destination_that_was_away_gets_everything_in_order_and_two_words_are_said(
        kind: str, receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with forwarding_world(tmp_path, receiver, kind) as world:
        await write(world, *numbers(0, 100))
        await passes(world, lambda: len(receiver.texts()) == 100)
        receiver.go()
        for hundred in range(1, 5):
            await write(world, *numbers(hundred * 100, hundred * 100 + 100))
            await world.clock.advance(timedelta(seconds=40))
        forwarder = world.control.forwarding
        assert forwarder is not None
        await passes(world, lambda: not forwarder.state().is_up)
        state = forwarder.state()
        assert (state.waiting_streams, state.lost, state.lines) == (1, 0, 100)
        assert state.behind_seconds > 100
        receiver.come()
        await passes(world, lambda: is_done(world) and len(receiver.texts()) >= 500)
        state = forwarder.state()
        assert (state.is_up, state.behind_seconds, state.lines) == (True, 0.0, 500)
    assert receiver.texts() == numbers(0, 500)
    first, second = said(caplog)
    assert first.startswith("log lines are not forwarded and wait on disk: ")
    assert second.startswith("log lines are forwarded again after ")


async def test_attempts_become_rare_and_a_retry_after_is_kept(receiver: Receiver, tmp_path: Path) -> None:
    async with forwarding_world(tmp_path, receiver) as world:
        receiver.fail(503)
        await write(world, "x")
        await passes(world, lambda: receiver.attempts >= 1)
        for _ in range(600):
            await world.clock.advance(timedelta(seconds=1))
            await asyncio.sleep(0.001)
        # 1, 2, 4, … 60 s and a fifth more or less.
        assert 5 <= receiver.attempts <= 20
        receiver.fail(429, **{"Retry-After": "3000"})
        before = receiver.attempts
        await passes(world, lambda: receiver.attempts > before, 5.0)
        receiver.failing = []
        await world.clock.advance(timedelta(seconds=2000))
        await asyncio.sleep(0.05)
        assert receiver.attempts == before + 1
        await passes(world, lambda: receiver.texts() == ["x"], 30.0)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_restart_goes_on_where_it_was(kind: str, receiver: Receiver, tmp_path: Path) -> None:
    async with forwarding_world(tmp_path, receiver, kind) as world:
        await write(world, *numbers(0, 10))
        await passes(world, lambda: len(receiver.texts()) == 10)
    receiver.go()
    async with forwarding_world(tmp_path, receiver, kind) as world:
        await write(world, *numbers(10, 20))
    receiver.come()
    async with forwarding_world(tmp_path, receiver, kind) as world:
        await write(world, *numbers(20, 30))
        await passes(world, lambda: len(receiver.texts()) >= 30)
    assert receiver.texts() == numbers(0, 30)


async def test_what_was_written_before_forwarding_was_ever_on_stays_where_it_is(
        receiver: Receiver, tmp_path: Path) -> None:
    async with api_world(tmp_path) as world:
        await write(world, "before")
    async with forwarding_world(tmp_path, receiver) as world:
        await write(world, "first")
        await passes(world, lambda: "first" in receiver.texts())
    async with api_world(tmp_path) as world:
        await write(world, "while it was off")
    async with forwarding_world(tmp_path, receiver) as world:
        await write(world, "last")
        await passes(world, lambda: "last" in receiver.texts())
    assert receiver.texts() == ["first", "while it was off", "last"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stop_sends_what_is_left(kind: str, receiver: Receiver, tmp_path: Path) -> None:
    async with forwarding_world(tmp_path, receiver, kind) as world:
        await write(world, *numbers(0, 20_000))
    assert receiver.texts() == numbers(0, 20_000)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stop_does_not_wait_for_a_destination_that_hangs_and_a_writer_never_does(
        kind: str, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarding, "LAST_ATTEMPT", 0.1)
    receiver.answers.clear()
    async with asyncio.timeout(10), forwarding_world(tmp_path, receiver, kind) as world:
        for number in range(50):
            await write(world, f"{number}", stream=f"s{number}")
            await world.clock.advance(timedelta(seconds=1))
        assert len(await world.control.logs.read(KEPT)) == 50
    receiver.answers.set()
    async with forwarding_world(tmp_path, receiver, kind) as world:
        await passes(world, lambda: set(receiver.texts()) == {str(number) for number in range(50)})
    # Those that were under way when the service stopped come twice at most.
    assert max(Counter(receiver.texts()).values()) <= 2


@pytest.mark.parametrize("kind", KINDS)
async def test_a_flood_and_a_huge_line_arrive_whole(kind: str, receiver: Receiver, tmp_path: Path) -> None:
    huge = "é" * 262_144
    async with forwarding_world(tmp_path, receiver, kind) as world:
        await write(world, *numbers(0, 25_000), huge, *numbers(25_000, 26_000))
        await passes(world, lambda: receiver.texts()[-1:] == ["line 25999"])
    assert "".join(receiver.texts()) == "".join([*numbers(0, 25_000), huge, *numbers(25_000, 26_000)])
    assert max(count for _, count in receiver.batches) <= 10_000
    assert len(receiver.batches) >= 3


def _has(receiver: Receiver, count: int) -> bool:
    return len(receiver.texts()) == count


async def test_a_log_group_that_is_denied_holds_up_no_other(
        receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    receiver.denied.add("denied")
    other = owned("000000000000", "us-east-1", "denied")
    async with forwarding_world(tmp_path, receiver, "cloudwatch") as world:
        await write(world, "held", group=other)
        for number in range(5):
            await write(world, f"{number}")
            await passes(world, partial(_has, receiver, number + 1))
        assert len(said(caplog)) == 1
        [record] = [each for each in caplog.records if each.name == "torpor.control.forwarding"]
        assert record.__dict__["log_group"] == other
        assert "AccessDeniedException" in record.getMessage()
        receiver.denied.clear()
        await passes(world, lambda: receiver.texts("denied") == ["held"])


async def test_a_request_that_is_too_large_is_halved_and_a_line_that_is_refused_is_counted(
        receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import secrets

    receiver.largest = 4000
    lines = [secrets.token_hex(100) for _ in range(100)]
    async with forwarding_world(tmp_path, receiver) as world:
        await write(world, *lines, secrets.token_hex(10_000), "end")
        await passes(world, lambda: is_done(world) and receiver.texts()[-1:] == ["end"])
        state = (await world.ask("GET", "/torpor/v1/stats")).document["logForwarding"]
    assert receiver.texts() == [*lines, "end"]
    assert state == {"lines": 101, "refused": 1, "lost": 0, "behindSeconds": 0.0, "waitingStreams": 0, "isUp": True}
    assert "1 were refused; the last refusal: OTLP at 127.0.0.1:" in " ".join(said(caplog))


async def test_records_that_the_receiver_left_out_are_counted(receiver: Receiver, tmp_path: Path) -> None:
    receiver.taken = {"partialSuccess": {"rejectedLogRecords": "2"}}
    async with forwarding_world(tmp_path, receiver) as world:
        await write(world, *numbers(0, 10))
        await passes(world, lambda: is_done(world) and len(receiver.texts()) == 10)
        body = (await world.ask("GET", "/metrics")).body.decode()
    assert "torpor_forwarded_lines_total 8\n" in body
    assert 'torpor_forwarding_lost_lines_total{reason="refused"} 2\n' in body


async def test_what_is_removed_before_it_was_sent_is_counted_and_said(
        receiver: Receiver, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    receiver.go()
    async with forwarding_world(tmp_path, receiver) as world:
        await write(world, *("x" * 1000 for _ in range(20_000)))
        assert world.control.forwarding is not None
        lost = world.control.forwarding.state().lost
        assert lost > 0  # a stream has 16 MiB
        kept = len(await world.control.logs.read(KEPT, limit=100_000))
        assert lost + kept == 20_000
        await passes(world, lambda: any(text.startswith("log lines are lost") for text in said(caplog)))
        receiver.come()
        await passes(world, lambda: is_done(world) and len(receiver.texts()) == kept)
        body = (await world.ask("GET", "/metrics")).body.decode()
    assert f'torpor_forwarding_lost_lines_total{{reason="removed"}} {lost}\n' in body
    assert f"since the start {lost} were removed before they could be forwarded" in " ".join(said(caplog))


async def test_without_forwarding_nothing_of_it_is_shown(tmp_path: Path) -> None:
    async with api_world(tmp_path) as world:
        assert b"forward" not in (await world.ask("GET", "/metrics")).body
        assert (await world.ask("GET", "/torpor/v1/stats")).document["logForwarding"] is None


async def test_lines_of_clients_that_put_them_are_forwarded_too(receiver: Receiver, tmp_path: Path) -> None:
    async with forwarding_world(tmp_path, receiver, "cloudwatch") as world:
        await write(world, "later", stream="s")
        await world.control.logs.append(KEPT, "s", [(world.clock.now() - timedelta(hours=hours), "", f"{hours} h ago")
                                                    for hours in (40, 20, 1)])  # fmt: skip
        await passes(world, lambda: len(receiver.texts()) == 4)
    assert [[line.text for line in lines] for lines in receiver.lines.values()] == [
        ["later", "40 h ago", "20 h ago", "1 h ago"]]


async def test_another_torpor_is_a_destination_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    async with api_world(tmp_path / "there") as there, served(there):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", there.credential.access_key_id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", there.credential.secret)
        forward = ForwardSettings("cloudwatch", there.url)
        async with api_world(tmp_path / "here", logs=LogSettings(forward=forward)) as here:
            await write(here, *numbers(0, 3000), "", "é" * 200_000)
            await passes(here, lambda: is_done(here))
        kept = await there.control.logs.read(KEPT, "s", limit=10_000)
    assert [line.text for line in kept[:3001]] == [*numbers(0, 3000), " "]
    assert "".join(line.text for line in kept[3001:]) == "é" * 200_000


async def test_many_streams_are_sent_and_what_is_known_of_those_that_end_is_forgotten(
        receiver: Receiver, tmp_path: Path) -> None:
    from torpor.store import forwarded
    from torpor.store.database import Database

    async with forwarding_world(tmp_path, receiver) as world:
        for number in range(200):
            await write(world, "x", stream=f"s{number}")
        await passes(world, lambda: is_done(world) and len(receiver.lines) == 200)
        await world.control.logs.delete(KEPT, "s0")
        await write(world, "y", stream="s1")
        await passes(world, lambda: "y" in receiver.texts())
    database = Database(f"sqlite:///{tmp_path / 'torpor.db'}")
    positions, since = await database.read(forwarded.read)
    await database.close()
    assert since == 0
    assert {stream for _, stream in positions} == {f"s{number}" for number in range(1, 200)}
