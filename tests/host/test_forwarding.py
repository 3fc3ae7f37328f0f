"""CloudWatch Logs and OTLP as destinations: requests within every limit, answers understood, nothing secret said."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.log_receiver import DAY_MS, Receiver, attributes, log_receiver, wrong_with
from torpor.host.forwarding.cloudwatch import LIMITS, CloudWatch
from torpor.host.forwarding.cutting import Limits, cut, pieces
from torpor.host.forwarding.otlp import Otlp, request_of
from torpor.model.errors import LinesRefused, NotForwarded
from torpor.model.logs import LogLine, LogPlace

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PLACE = LogPlace("000000000000", "eu-west-1", "/aws/lambda-microvms/counter", "2026/01/01[1.0]microvm-1")
KEY = ("/aws/lambda-microvms/counter", "2026/01/01[1.0]microvm-1")
SECRET = "t0psecret-token"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with log_receiver() as made:
        yield made


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASERVICE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def line(text: str, number: int = 0, source: str = "stdout", **later: float) -> LogLine:
    return LogLine(1_767_225_600_000_000 + number, NOW + timedelta(**later), PLACE.stream, text, source)


async def send(to: CloudWatch | Otlp, lines: Sequence[LogLine]) -> int:
    """All of them; returns how many were refused in part."""
    try:
        return sum([await to.deliver(batch) for batch in to.cut(PLACE, lines)])
    finally:
        await to.close()


@given(st.text(max_size=40), st.integers(4, 20))
def test_a_long_line_comes_in_pieces_that_make_it_up_and_cut_no_character(text: str, most: int) -> None:
    found = pieces(text, most)
    assert "".join(found) == text
    assert all(1 <= len(piece.encode()) <= most for piece in found)


SMALL = Limits(events=5, bytes=60, event_bytes=7, text_bytes=20, span_ms=1000)
LINES = st.lists(st.tuples(st.text(st.characters(), max_size=50), st.integers(-2000, 2000)), max_size=40)


@given(LINES, st.sampled_from([SMALL, Limits(1, 30, 26, 4, 0), LIMITS]))
def test_batches_keep_every_limit_and_have_every_line_in_order(lines: list[tuple[str, int]], limits: Limits) -> None:
    made = [LogLine(number, NOW + timedelta(milliseconds=ms), "s", text) for number, (text, ms) in enumerate(lines)]
    batches = cut(made, limits)
    assert [each for batch in batches for each in batch.lines] == made
    for batch in batches:
        events = batch.in_order_of_time()
        times = [event.at_ms for event in events]
        assert 1 <= len(events) <= limits.events
        assert sum(len(event.text.encode()) + limits.event_bytes for event in events) <= limits.bytes
        assert all(1 <= len(event.text.encode()) <= limits.text_bytes for event in events)
        assert times == sorted(times)
        assert times[-1] - times[0] <= limits.span_ms
        assert sorted(events, key=batch.events.index) == batch.events
    told = "".join(event.text for batch in batches for event in batch.events)
    assert told == "".join(text.encode(errors="replace").decode() or " " for text, _ in lines)


@given(st.lists(st.tuples(st.sampled_from([0, 1, 25, 262_118, 262_119, 400_000]), st.integers(-2 * DAY_MS, 2 * DAY_MS)),
                max_size=12), st.integers(0, 10_050))  # fmt: skip
def test_cloudwatch_would_take_every_batch(odd: list[tuple[int, int]], many: int) -> None:
    lines = [line("é" * (size // 2) + "x" * (size % 2), milliseconds=ms) for size, ms in odd] + [line("x")] * many
    for batch in CloudWatch(None, None).cut(PLACE, lines):
        assert not wrong_with([{"timestamp": event.at_ms, "message": event.text} for event in batch.content])


@pytest.mark.usefixtures("keys")
async def test_cloudwatch_gets_lines_and_a_group_and_stream_to_hold_them(receiver: Receiver) -> None:
    await send(CloudWatch(receiver.url, None), [line("a"), line(""), line("\ud800 half"), line("é" * 300_000)])
    found = receiver.lines[KEY]
    assert [each.text for each in found[:3]] == ["a", " ", "? half"]
    assert "".join(each.text for each in found[3:]) == "é" * 300_000
    assert {each.at_ms for each in found} == {1_767_225_600_000}
    named = [target.removeprefix("Logs_20140328.") for target in receiver.targets]
    assert named == ["PutLogEvents", "CreateLogStream", "CreateLogGroup", "CreateLogStream", "PutLogEvents"]
    assert "/eu-west-1/logs/aws4_request" in receiver.headers[0]["authorization"]
    await send(CloudWatch(receiver.url, "us-west-2"), [line("b")])
    assert receiver.targets[5:] == ["Logs_20140328.PutLogEvents"]
    assert "/us-west-2/logs/aws4_request" in receiver.headers[-1]["authorization"]


@pytest.mark.usefixtures("keys")
async def test_events_that_cloudwatch_took_out_of_a_batch_are_told(receiver: Receiver) -> None:
    receiver.groups.add(KEY[0])
    receiver.streams.add(KEY)
    lines = [line("x", hours=hour) for hour in range(10)]
    receiver.taken = {"rejectedLogEventsInfo": {"tooOldLogEventEndIndex": 2, "expiredLogEventEndIndex": 3,
                                                "tooNewLogEventStartIndex": 9}}
    assert await send(CloudWatch(receiver.url, None), lines) == 4
    receiver.taken = {"rejectedLogEventsInfo": {"tooNewLogEventStartIndex": 0}}
    assert await send(CloudWatch(receiver.url, None), lines) == 10


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(("code", "status", "is_whole"), [
    ("UnrecognizedClientException", 400, True), ("ExpiredTokenException", 400, True),
    ("ThrottlingException", 400, True),
    ("ServiceUnavailableException", 503, True), ("AccessDeniedException", 400, False),
    ("LimitExceededException", 400, False), ("", 500, True),
])  # fmt: skip
async def test_what_may_be_right_later_waits(receiver: Receiver, code: str, status: int, is_whole: bool) -> None:
    said = f"The Canonical String for this request should have been x-amz-security-token:{SECRET}"
    receiver.fail(status, json.dumps({"__type": code, "message": said if is_whole else "no"}))
    with pytest.raises(NotForwarded) as raised:
        await send(CloudWatch(receiver.url, None), [line("x")])
    assert raised.value.is_whole is is_whole
    assert code in str(raised.value)
    assert SECRET not in str(raised.value)


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize("code", ["InvalidParameterException", "SerializationException"])
async def test_what_cloudwatch_calls_invalid_never_waits(receiver: Receiver, code: str) -> None:
    receiver.fail(400, json.dumps({"__type": code, "message": "Log event too odd"}))
    with pytest.raises(LinesRefused, match="Log event too odd"):
        await send(CloudWatch(receiver.url, None), [line("x")])


@pytest.mark.usefixtures("keys")
async def test_nobody_there_means_waiting(receiver: Receiver) -> None:
    receiver.go()
    for to in (CloudWatch(receiver.url, None), Otlp(receiver.url, {"authorization": SECRET})):
        with pytest.raises(NotForwarded, match=r"cannot be reached") as raised:
            await send(to, [line("x")])
        assert SECRET not in str(raised.value)
        assert f"127.0.0.1:{receiver.port}" in str(raised.value)


async def test_without_keys_nothing_is_sent_and_later_ones_are_found(
        receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, f"{tmp_path}/none")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    to = CloudWatch(receiver.url, None)
    with pytest.raises(NotForwarded, match="credentials"):
        await send(to, [line("x")])
    assert receiver.attempts == 0
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASERVICE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    await send(to, [line("x")])
    assert receiver.texts() == ["x"]


@pytest.mark.usefixtures("keys")
async def test_an_endpoint_in_the_environment_is_not_followed(
        receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    with log_receiver() as own:
        monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDWATCH_LOGS", own.url)
        await send(CloudWatch(receiver.url, None), [line("x")])
        assert own.attempts == 0


@pytest.mark.parametrize("path", ["", "/", "/v1/logs", "/otlp", "/otlp/", "/otlp/v1/logs"])
async def test_an_otlp_receiver_is_found_with_or_without_the_path_of_logs(receiver: Receiver, path: str) -> None:
    await send(Otlp(receiver.url + path, {}), [line("x")])
    prefix = "/otlp" if "otlp" in path else ""
    assert receiver.targets == [f"{prefix}/v1/logs"]


async def test_an_otlp_receiver_gets_lines_with_what_they_are_of(receiver: Receiver) -> None:
    lines = [line("out", 1), line("err", 2, "stderr", seconds=1), line("#1 FROM", 3, "build"), line("\ud800", 4, "")]
    to = Otlp(receiver.url, {"Authorization": SECRET, "X-Scope-OrgID": "me"})
    assert SECRET not in to.name
    assert await send(to, lines) == 0
    resource = {
        "service.name": "torpor", "cloud.account.id": "000000000000", "cloud.region": "eu-west-1",
        "aws.log.group.names": [KEY[0]], "aws.log.stream.names": [KEY[1]],
    }  # fmt: skip
    assert [(each.text, each.attributes) for each in receiver.lines[KEY]] == [
        ("out", resource | {"log.iostream": "stdout"}), ("err", resource | {"log.iostream": "stderr"}),
        ("#1 FROM", resource | {"torpor.source": "build"}), ("?", resource),
    ]  # fmt: skip
    [headers] = receiver.headers
    assert (headers["authorization"], headers["x-scope-orgid"]) == (SECRET, "me")
    assert (headers["content-type"], headers["content-encoding"]) == ("application/json", "gzip")


def test_otlp_numbers_of_64_bits_are_strings_and_names_are_in_camel_case() -> None:
    [resource] = request_of(PLACE, [line("x", 7)])["resourceLogs"]
    [scope] = resource["scopeLogs"]
    [record] = scope["logRecords"]
    assert record["timeUnixNano"] == "1767225600000000000"
    assert record["observedTimeUnixNano"] == "1767225600000007000"
    assert record["body"] == {"stringValue": "x"}
    assert attributes(record["attributes"]) == {"log.iostream": "stdout"}
    assert scope["scope"]["name"] == "torpor"


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_what_otlp_says_to_try_again_waits_as_long_as_it_asks(receiver: Receiver, status: int) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    wanted = {None: None, "0": timedelta(0), "7": timedelta(seconds=7), "999999": timedelta(hours=1), "soon": None,
              "Thu, 01 Jan 2015 00:00:00 GMT": timedelta(0)}  # fmt: skip
    for asked, found in wanted.items():
        receiver.fail(status, **({} if asked is None else {"Retry-After": asked}))
        with pytest.raises(NotForwarded) as raised:
            await send(Otlp(receiver.url, {}), [line("x")])
        assert (raised.value.retry_after, raised.value.is_whole) == (found, True)
    receiver.fail(status, **{"Retry-After": date})
    with pytest.raises(NotForwarded) as raised:
        await send(Otlp(receiver.url, {}), [line("x")])
    assert raised.value.retry_after is not None
    assert timedelta(seconds=50) < raised.value.retry_after <= timedelta(seconds=100)


@pytest.mark.parametrize("status", [301, 401, 403, 404, 407])
async def test_an_answer_about_the_settings_does_not_cost_lines(receiver: Receiver, status: int) -> None:
    receiver.fail(status, json.dumps({"message": f"bad key {SECRET}"}))
    with pytest.raises(NotForwarded, match=rf"answered {status}(: bad key …)?$"):
        await send(Otlp(receiver.url, {"x-key": SECRET}), [line("x")])


@pytest.mark.parametrize("status", [400, 413, 422, 500, 501])
async def test_what_otlp_forbids_to_try_again_is_refused(receiver: Receiver, status: int) -> None:
    receiver.fail(status, json.dumps({"message": f"not {SECRET}"}))
    with pytest.raises(LinesRefused, match=rf"answered {status}: not …") as raised:
        await send(Otlp(receiver.url, {"x-key": SECRET}), [line("x")])
    assert raised.value.is_too_large is (status == 413)


async def test_a_connection_that_ends_without_an_answer_is_tried_again(receiver: Receiver) -> None:
    receiver.silent.set()
    with pytest.raises(NotForwarded):
        await send(Otlp(receiver.url, {}), [line("x")])


@pytest.mark.parametrize(("said", "refused"), [
    ({}, 0), ({"partialSuccess": {}}, 0), ({"partialSuccess": {"rejectedLogRecords": "2", "errorMessage": "old"}}, 2),
    ({"partialSuccess": {"rejectedLogRecords": 1}}, 1), ({"partialSuccess": {"rejectedLogRecords": "99"}}, 3),
    ({"partialSuccess": {"rejectedLogRecords": "x"}}, 0), ({"partialSuccess": []}, 0), ([], 0),
])  # fmt: skip
async def test_records_that_an_otlp_receiver_left_out_are_told(receiver: Receiver, said: dict[str, object],
                                                               refused: int) -> None:  # fmt: skip
    receiver.taken = said
    assert await send(Otlp(receiver.url, {}), [line("a"), line("b"), line("c")]) == refused


def test_otlp_requests_are_compressed() -> None:
    [batch] = Otlp("http://127.0.0.1:1", {}).cut(PLACE, [line("x" * 1000)] * 100)
    assert json.loads(gzip.decompress(batch.content)) == request_of(PLACE, [line("x" * 1000)] * 100)
    assert len(batch.content) < 5000
