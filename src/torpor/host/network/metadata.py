"""The metadata service of one microVM at 169.254.169.254: IMDSv2 and the credentials of its execution role (spec 13).

It speaks the little HTTP/1.1 that this takes, to a peer that may send anything. Every answer closes its connection.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final, Protocol

from torpor.model.errors import RoleUnavailable
from torpor.model.role import RoleCredentials

ROLE_NAME: Final = "execution_role"
TOKEN_PATH: Final = "/latest/api/token"  # noqa: S105 - a path
CREDENTIALS_PATH: Final = "/latest/meta-data/iam/security-credentials/"
LONGEST_TOKEN: Final = 21_600
"""Seconds, as EC2's."""
TOKENS: Final = 1024
CONNECTIONS: Final = 64
"""Of one microVM at a time; more are cut."""
REQUEST_TIMEOUT: Final = 10.0
CREDENTIALS_TIMEOUT: Final = 20.0
_MAX_HEAD: Final = 8 * 1024
_REASONS: Final = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
                   405: "Method Not Allowed", 503: "Service Unavailable"}
log: Final = logging.getLogger(__name__)


class RoleSource(Protocol):
    async def credentials(self, role: str, owner: str) -> RoleCredentials:
        """Of a microVM's execution role, good for a while yet. Raises RoleUnavailable."""
        ...


class RoleDoor:
    """Where the source of credentials is hung once there is one: slots are served before the service has started."""

    def __init__(self) -> None:
        self.source: RoleSource | None = None

    async def credentials(self, role: str, owner: str) -> RoleCredentials:
        if self.source is None:
            raise RoleUnavailable("the service is starting")
        return await self.source.credentials(role, owner)


class Metadata:
    def __init__(self, role: str | None, owner: str, roles: RoleSource,
                 now: Callable[[], float] = time.monotonic) -> None:
        self._role = role
        self._owner = owner
        self._roles = roles
        self._now = now
        self._tokens: dict[str, float] = {}
        """Until when each is good."""
        self._open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request and close."""
        self._open += 1
        try:
            if self._open > CONNECTIONS:
                return
            async with asyncio.timeout(REQUEST_TIMEOUT):
                head = await reader.readuntil(b"\r\n\r\n")
            writer.write(await self._response(head) if len(head) <= _MAX_HEAD else _write(400))
            async with asyncio.timeout(REQUEST_TIMEOUT):
                await writer.drain()
                writer.write_eof()
                await reader.read(1)  # its end: closing with bytes unread would take the answer back
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open -= 1
            writer.close()

    async def _response(self, head: bytes) -> bytes:
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _write(400)
        pairs = (line.partition(":") for line in lines[1:])
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        status, body, more = await self.answer(words[0], words[1], headers)
        return _write(status, body, more)

    async def answer(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str, dict[str, str]]:
        """Status, body and further headers; `headers` by lower-case name."""
        if path == TOKEN_PATH:
            return self._token(method, headers)
        if not self._is_good(headers.get("x-aws-ec2-metadata-token")):
            return 401, "", {}
        if method not in ("GET", "HEAD"):
            return 405, "", {"Allow": "GET, HEAD"}
        if self._role is None or path.rstrip("/") not in (CREDENTIALS_PATH.rstrip("/"), CREDENTIALS_PATH + ROLE_NAME):
            return 404, "", {}
        if not path.rstrip("/").endswith(ROLE_NAME):
            return 200, ROLE_NAME, {}
        try:
            async with asyncio.timeout(CREDENTIALS_TIMEOUT):
                found = await self._roles.credentials(self._role, self._owner)
        except (RoleUnavailable, TimeoutError) as error:
            log.warning("%s gets no credentials of its role: %s", self._owner, error)
            return 503, "", {}
        return 200, _document(found), {"Content-Type": "application/json"}

    def _token(self, method: str, headers: Mapping[str, str]) -> tuple[int, str, dict[str, str]]:
        if method != "PUT":
            return 405, "", {"Allow": "PUT"}
        if "x-forwarded-for" in headers:
            return 403, "", {}  # as EC2: a proxy in the guest that was talked into asking
        wanted = headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
        if not (wanted.isascii() and wanted.isdigit() and len(wanted) <= 5 and 1 <= int(wanted) <= LONGEST_TOKEN):
            return 400, "", {}
        token = secrets.token_urlsafe(40)
        now = self._now()
        self._tokens = {each: until for each, until in self._tokens.items() if until > now}
        while len(self._tokens) >= TOKENS:
            self._tokens.pop(next(iter(self._tokens)))
        self._tokens[token] = now + int(wanted)
        return 200, token, {"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": wanted}

    def _is_good(self, token: str | None) -> bool:
        return token is not None and self._tokens.get(token, 0.0) > self._now()


def _document(found: RoleCredentials) -> str:
    return json.dumps({
        "Code": "Success", "LastUpdated": _instant(found.updated_at), "Type": "AWS-HMAC",
        "AccessKeyId": found.access_key_id, "SecretAccessKey": found.secret, "Token": found.session_token,
        "Expiration": _instant(found.expires_at),
    }, indent=2)


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _write(status: int, body: str = "", more: Mapping[str, str] | None = None) -> bytes:
    headers = {"Content-Type": "text/plain", "Server": "EC2ws", "Cache-Control": "no-store", **(more or {})}
    lines = [f"HTTP/1.1 {status} {_REASONS[status]}", f"Content-Length: {len(body)}", "Connection: close",
             *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join([*lines, "", ""]) + body).encode("latin-1")
