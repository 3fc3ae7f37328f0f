"""CloudWatch Logs, or whatever speaks its API: PutLogEvents into groups and streams that are made when missing.

Credentials are those that boto3 finds in the service's environment or ~/.aws.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from threading import Lock, Thread
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore.config import Config as ClientConfig
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError, PartialCredentialsError

from torpor.host.forwarding.cutting import Event, Limits, cut, lines_of
from torpor.model.errors import LinesRefused, NotForwarded
from torpor.model.forwarding import Batch
from torpor.model.logs import PUT_BYTES, PUT_EVENT_BYTES, PUT_EVENTS, PUT_SPAN_MS, LogLine, LogPlace

T = TypeVar("T")
LIMITS: Final = Limits(
    events=PUT_EVENTS, bytes=PUT_BYTES, event_bytes=PUT_EVENT_BYTES,
    # AWS takes 1 MB now; many that speak its API know the limit of before, with what an event costs in it.
    text_bytes=256 * 1024 - PUT_EVENT_BYTES,
    span_ms=PUT_SPAN_MS,
)  # fmt: skip
CONNECT_TIMEOUT: Final = 5
READ_TIMEOUT: Final = 15
CONNECTIONS: Final = 8
_REFUSED: Final = frozenset({
    "InvalidParameterException", "ValidationException", "SerializationException", "RequestEntityTooLarge",
    "RequestEntityTooLargeException", "413",
})  # fmt: skip
_TOO_LARGE: Final = frozenset({"RequestEntityTooLarge", "RequestEntityTooLargeException", "413"})
_OF_GROUP: Final = frozenset({
    "AccessDeniedException", "ResourceNotFoundException", "LimitExceededException", "OperationAbortedException",
})  # fmt: skip
"""Codes that say nothing about other log groups."""
_TELLING: Final = _REFUSED | _OF_GROUP
"""Codes whose messages are worth showing. Others may repeat what was signed, session token and all."""
_LONGEST_MESSAGE: Final = 300
_NO_KEYS: Final = (NoCredentialsError, PartialCredentialsError)
_PLAIN: Final = (HTTPClientError, *_NO_KEYS)


class CloudWatch:
    """In one region, or each line in that of its microVM."""

    def __init__(self, endpoint_url: str | None, region: str | None) -> None:
        self._endpoint_url = endpoint_url
        self._region = region
        self._clients: dict[str, Any] = {}
        self._lock = Lock()

    @property
    def name(self) -> str:
        where = urlsplit(self._endpoint_url).netloc if self._endpoint_url else "AWS"
        return f"CloudWatch Logs at {where}" + (f" in {self._region}" if self._region else "")

    def cut(self, place: LogPlace, lines: Sequence[LogLine]) -> list[Batch]:
        return [Batch(place, tuple(each.lines), each.in_order_of_time()) for each in cut(lines, LIMITS)]

    async def deliver(self, batch: Batch) -> int:
        try:
            return await _apart(lambda: self._deliver(batch))
        except ClientError as error:
            raise _unwanted(error) from None
        except (BotoCoreError, OSError) as error:
            if isinstance(error, _NO_KEYS):
                self._clients.clear()  # a client that has found none does not look again
            # Texts of others may hold what a program for credentials has said.
            why = str(error) if isinstance(error, _PLAIN) else type(error).__name__
            raise NotForwarded(f"{self.name} cannot be reached: {why}") from None

    async def close(self) -> None:
        for client in list(self._clients.values()):
            client.close()

    def _deliver(self, batch: Batch) -> int:
        events: list[Event] = batch.content
        members = {
            "logGroupName": batch.place.group, "logStreamName": batch.place.stream,
            "logEvents": [{"timestamp": event.at_ms, "message": event.text} for event in events],
        }  # fmt: skip
        client = self._client(batch.place.region)
        try:
            try:
                answer = client.put_log_events(**members)
            except client.exceptions.ResourceNotFoundException:
                self._make(client, batch.place)
                answer = client.put_log_events(**members)
        except client.exceptions.DataAlreadyAcceptedException:
            return 0
        rejected = answer.get("rejectedLogEventsInfo") or {}
        begin = max(rejected.get("tooOldLogEventEndIndex") or 0, rejected.get("expiredLogEventEndIndex") or 0)
        end = rejected.get("tooNewLogEventStartIndex")
        return lines_of(events[:begin]) + (0 if end is None else lines_of(events[max(begin, end):]))

    def _make(self, client: Any, place: LogPlace) -> None:
        names = {"logGroupName": place.group, "logStreamName": place.stream}
        with contextlib.suppress(client.exceptions.ResourceAlreadyExistsException):
            try:
                client.create_log_stream(**names)
            except client.exceptions.ResourceNotFoundException:
                with contextlib.suppress(client.exceptions.ResourceAlreadyExistsException):
                    client.create_log_group(logGroupName=place.group)
                client.create_log_stream(**names)

    def _client(self, of_line: str) -> Any:
        region = self._region or of_line
        with self._lock:
            if region not in self._clients:
                options = ClientConfig(
                    connect_timeout=CONNECT_TIMEOUT, read_timeout=READ_TIMEOUT, max_pool_connections=CONNECTIONS,
                    retries={"total_max_attempts": 2, "mode": "standard"},
                    # What `torpor env` prints may be in it, and would lead back here.
                    ignore_configured_endpoint_urls=True,
                )  # fmt: skip
                self._clients[region] = boto3.session.Session().client(
                    "logs", region_name=region, endpoint_url=self._endpoint_url, config=options)
            return self._clients[region]


def _unwanted(error: ClientError) -> NotForwarded | LinesRefused:
    said: Any = error.response.get("Error", {})
    code, message = str(said.get("Code", "")), str(said.get("Message", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    text = f"{error.operation_name}: {code or 'no code'}, HTTP status {status}"
    if code in _TELLING and message:
        text += f": {message[:_LONGEST_MESSAGE]}"
    if code in _REFUSED or status == 413:
        return LinesRefused(text, is_too_large=code in _TOO_LARGE or status == 413)
    return NotForwarded(text, is_whole=code not in _OF_GROUP)


async def _apart(call: Callable[[], T]) -> T:
    """Run a blocking call in a thread of its own: a destination that hangs holds up no thread that others need.

    Nor does it hold up the end of the process: the thread is a daemon, and its call has timeouts.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def tell(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return  # given up
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, failure = None, None
        try:
            result = call()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(tell, result, failure)

    Thread(target=run, name="forward", daemon=True).start()
    return await done
