"""OTLP/HTTP with JSON (OpenTelemetry protocol specification 1.x): ExportLogsServiceRequest by POST.

Records carry the line as body, its time, and when it was written as observed time, which also orders lines of the same
time. What group, stream, account and region they are of are attributes of the resource.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import orjson

from torpor import __version__
from torpor.host.forwarding.cutting import plain
from torpor.model.errors import LinesRefused, NotForwarded
from torpor.model.forwarding import Batch
from torpor.model.logs import LogLine, LogPlace
from torpor.model.moments import microseconds

PATH: Final = "/v1/logs"
CONNECT_TIMEOUT: Final = 5.0
TIMEOUT: Final = 15.0
LARGEST_ANSWER: Final = 64 * 1024
LONGEST_WAIT: Final = timedelta(hours=1)
"""That a Retry-After may ask for."""
_RETRIED: Final = frozenset({429, 502, 503, 504})
"""What the specification names; other answers of 400 and above must not be asked for again."""
_SETTINGS: Final = frozenset({401, 403, 404, 405, 407, 408})
"""These say that the settings, or something on the way, are wrong, and nothing of the lines, which wait."""
_LONGEST_MESSAGE: Final = 200
_LONG_WORD: Final = 8
_STREAMS: Final = frozenset({"stdout", "stderr"})


class Otlp:
    """`headers` are sent along and never shown."""

    def __init__(self, endpoint_url: str, headers: Mapping[str, str]) -> None:
        self._url = endpoint_url if endpoint_url.endswith(PATH) else endpoint_url.rstrip("/") + PATH
        self._headers = {name.lower(): value for name, value in headers.items()} | {
            "content-type": "application/json", "content-encoding": "gzip", "accept-encoding": "identity",
        }
        self._secrets = [part for value in headers.values() for part in (value, *_words(value))]
        self._client = httpx.AsyncClient(timeout=httpx.Timeout(TIMEOUT, connect=CONNECT_TIMEOUT))

    @property
    def name(self) -> str:
        return f"OTLP at {urlsplit(self._url).netloc}"

    def cut(self, place: LogPlace, lines: Sequence[LogLine]) -> list[Batch]:
        return [Batch(place, tuple(lines), gzip.compress(orjson.dumps(request_of(place, lines)), 1))]

    async def deliver(self, batch: Batch) -> int:
        try:
            async with asyncio.timeout(TIMEOUT * 2), self._client.stream(
                    "POST", self._url, content=batch.content, headers=self._headers) as answer:  # fmt: skip
                body = await _beginning(answer)
        except httpx.ProtocolError as error:  # its text may hold what was sent
            raise NotForwarded(f"{self.name} does not speak HTTP as it should: {type(error).__name__}") from None
        except (httpx.HTTPError, OSError) as error:
            # Cut off without an answer, or not reached at all: either is tried again.
            why = str(error) or type(error).__name__
            raise NotForwarded(f"{self.name} cannot be reached: {self._shown(why)}") from None
        if answer.is_success:
            return min(_rejected(body), len(batch.lines))
        text = f"{self.name} answered {answer.status_code}"
        if message := _message(body):
            text += f": {self._shown(message)}"
        if answer.status_code in _RETRIED:
            raise NotForwarded(text, retry_after=_retry_after(answer.headers.get("retry-after")))
        if answer.status_code in _SETTINGS or answer.status_code < 400:
            raise NotForwarded(text)
        raise LinesRefused(text, is_too_large=answer.status_code == 413)

    async def close(self) -> None:
        await self._client.aclose()

    def _shown(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return text[:_LONGEST_MESSAGE]


def _words(value: str) -> list[str]:
    """The parts of `Bearer …` and the like that somebody may repeat alone."""
    return [word for word in value.split() if len(word) >= _LONG_WORD]


def request_of(place: LogPlace, lines: Sequence[LogLine]) -> dict[str, Any]:
    """An ExportLogsServiceRequest in OTLP's JSON: 64-bit numbers are strings."""
    resource = [
        _text("service.name", "torpor"), _text("cloud.account.id", place.account), _text("cloud.region", place.region),
        _texts("aws.log.group.names", place.group), _texts("aws.log.stream.names", place.stream),
    ]  # fmt: skip
    return {"resourceLogs": [{
        "resource": {"attributes": resource},
        "scopeLogs": [{"scope": {"name": "torpor", "version": __version__}, "logRecords": list(map(_record, lines))}],
    }]}  # fmt: skip


def _record(line: LogLine) -> dict[str, Any]:
    record: dict[str, Any] = {
        "timeUnixNano": str(max(0, microseconds(line.at)) * 1000),
        "observedTimeUnixNano": str(line.sequence * 1000),
        "body": {"stringValue": plain(line.text)},
    }  # fmt: skip
    if line.source:
        name = "log.iostream" if line.source in _STREAMS else "torpor.source"
        record["attributes"] = [_text(name, line.source)]
    return record


def _text(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"stringValue": value}}


def _texts(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"arrayValue": {"values": [{"stringValue": value}]}}}


async def _beginning(answer: httpx.Response) -> bytes:
    body = b""
    async for piece in answer.aiter_raw():
        body += piece
        if len(body) > LARGEST_ANSWER:
            break
    return body


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def _rejected(body: bytes) -> int:
    partial = _document(body).get("partialSuccess")
    try:
        return max(0, int(partial.get("rejectedLogRecords") or 0)) if isinstance(partial, dict) else 0
    except (TypeError, ValueError):
        return 0


def _message(body: bytes) -> str:
    message = _document(body).get("message")
    return message if isinstance(message, str) else ""


def _retry_after(value: str | None) -> timedelta | None:
    """Seconds or a date (RFC 9110, 10.2.3); None when it is neither."""
    if value is None:
        return None
    if value.isascii() and value.strip().isdigit():
        return min(timedelta(seconds=int(value[:9])), LONGEST_WAIT)
    try:
        wait = parsedate_to_datetime(value) - datetime.now(UTC)
    except (TypeError, ValueError):
        return None
    return min(max(wait, timedelta(0)), LONGEST_WAIT)
