"""Answers S3: verifies each request with Torpor's keys, asks the policies, and passes it on to rclone.

rclone serves a Unix socket that nobody but the service's user can open, and asks for no key there: what reaches it has
been decided on here. Bodies of both directions pass through in pieces.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from torpor.api.asgi import Disconnected, Receive, Scope, Send, headers_of
from torpor.api.errors import Answer, WireError
from torpor.api.s3 import asked as asking
from torpor.api.s3 import documents
from torpor.api.s3.asked import Asked
from torpor.api.s3.errors import XML, S3Error, access_denied, expired_token, no_such_bucket, of_signature
from torpor.api.s3.payload import Payload, declared
from torpor.api.sigv4 import S3, Proof, Request, Verifier, access_key_id
from torpor.control.accounts import Accounts
from torpor.control.buckets import Buckets
from torpor.model.caller import Caller
from torpor.model.clock import SystemClock
from torpor.model.errors import Denied
from torpor.model.ids import new_request_id

_log = logging.getLogger(__name__)

MAX_DOCUMENT: Final = 2 * 1024 * 1024
"""Bytes of a request's XML: a thousand keys of the greatest length."""
_TIMEOUT: Final = httpx.Timeout(60.0, connect=5.0, read=600.0, pool=None)
"""rclone reads a whole object for its ETag, or copies it, before it answers."""
_PASSED: Final = frozenset({
    "cache-control", "content-disposition", "content-encoding", "content-language", "content-md5", "content-type",
    "expires", "range", "x-amz-metadata-directive", "x-amz-storage-class",
})
_PASSED_KINDS: Final = ("if-", "x-amz-meta-", "x-amz-copy-source-if-")
"""What else is said of a request stays here: rclone keeps all `x-amz-` headers as an object's metadata and gives them
to whoever reads it: a session token, or the checksum of the whole with a part of it."""
_OWN: Final = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"date"})
_HAS_BODY: Final = frozenset({"PUT", "POST"})


@dataclass(frozen=True, slots=True)
class _Call:
    """One request as far as it is understood."""

    caller: Caller
    asked: Asked
    headers: Mapping[str, str]
    payload: Payload
    receive: Receive
    send: Send


class S3Front:
    """The ASGI application."""

    def __init__(self, accounts: Accounts, buckets: Buckets, socket: Path) -> None:
        self._accounts = accounts
        self._buckets = buckets
        # The clients' own time, as for the API.
        self._verifier = Verifier(accounts.credential, SystemClock().now)
        transport = httpx.AsyncHTTPTransport(
            uds=str(socket), limits=httpx.Limits(max_connections=None, max_keepalive_connections=16))
        self._rclone = httpx.AsyncClient(transport=transport, timeout=_TIMEOUT, trust_env=False)
        self._making = asyncio.Lock()
        """Held while a bucket is made or deleted: its owner and its directory change together."""

    async def close(self) -> None:
        await self._rclone.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        has_read = has_begun = False

        async def receiving() -> MutableMapping[str, Any]:
            nonlocal has_read
            has_read = True
            return await receive()

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._http(scope, receiving, sending)
        except Disconnected:
            return
        except Exception as error:
            if has_begun:
                raise
            request_id = new_request_id()
            refusal = _refusal(error, scope, request_id)
            # A client that was not told to send its body does not, and the next request would be taken for it.
            is_unread = not has_read and any(name == b"expect" for name, _ in scope["headers"])
            await _answer(send, refusal.answer(scope["path"], request_id), request_id, is_last=is_unread)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, headers = scope["method"], headers_of(scope["headers"])
        raw_path, raw_query = scope["raw_path"].decode("latin-1"), scope["query_string"].decode("latin-1")
        if headers.get("authorization", "").startswith("AWS ") or "AWSAccessKeyId=" in raw_query:
            raise S3Error("InvalidRequest", "The authorization mechanism you have provided is not supported. Please "
                          "use AWS4-HMAC-SHA256.")
        is_presigned = _is_presigned(scope)
        kind = declared(headers, is_presigned) if "authorization" in headers or is_presigned else ""
        proof = self._proof(Request(method, raw_path, raw_query, headers, b""), kind)
        _check_signed(headers, proof)
        caller = Caller(proof.credential.account, proof.region, proof.credential.principal,
                        proof.credential.access_key_id)
        asked = asking.read(method, raw_path, raw_query)
        call = _Call(caller, asked, headers, Payload(headers, kind, proof.seed), receive, send)
        if asked.subresource == "delete":
            await self._delete_objects(call)
            return
        await self._authorize(caller, asked)
        if asked.action == "s3:ListAllMyBuckets":
            await self._list_buckets(call)
        elif asked.action in ("s3:CreateBucket", "s3:DeleteBucket"):
            await self._make_or_delete(call)
        else:
            await self._pass_on(call, await self._body(call))

    def _proof(self, request: Request, kind: str) -> Proof:
        try:
            return self._verifier.prove(request, kind, S3)
        except WireError as error:
            if (key := access_key_id(request)) is not None and self._accounts.has_expired(key):
                raise expired_token() from error
            raise

    async def _authorize(self, caller: Caller, asked: Asked) -> None:
        """Raises S3Error, Denied."""
        if asked.bucket and asked.action != "s3:CreateBucket":
            await self._check_owner(caller, asked.bucket)
        await self._accounts.authorize(caller, asked.action, asked.resource, asked.context)

    async def _check_owner(self, caller: Caller, bucket: str) -> None:
        owner = self._buckets.owner(bucket)
        if owner is None:
            raise no_such_bucket()
        if owner != caller.account:
            raise access_denied()

    async def _make_or_delete(self, call: _Call) -> None:
        bucket, body = call.asked.bucket, await call.payload.whole(call.receive, MAX_DOCUMENT)
        async with self._making:
            if call.asked.action == "s3:CreateBucket":
                await self._claim(call, bucket)
                await self._pass_on(call, body)
            elif await self._pass_on(call, None) < 300:
                await self._buckets.forget(bucket)

    async def _claim(self, call: _Call, bucket: str) -> None:
        owner = self._buckets.owner(bucket)
        if owner is None:
            await self._buckets.claim(bucket, call.caller.account)
        elif owner != call.caller.account:
            raise S3Error("BucketAlreadyExists", "The requested bucket name is not available. The bucket namespace is "
                          "shared by all users of the system. Please select a different name and try again.")

    async def _list_buckets(self, call: _Call) -> None:
        await call.payload.whole(call.receive, 0)
        async with self._exchange(call, None) as response:
            document = await response.aread()
            own = documents.keep_buckets(document, lambda name: self._buckets.owner(name) == call.caller.account)
            await _answer(call.send, Answer(response.status_code, own, content_type=XML), _request_id(response))

    async def _delete_objects(self, call: _Call) -> None:
        await self._check_owner(call.caller, call.asked.bucket)
        keys, is_quiet = documents.keys_to_delete(await call.payload.whole(call.receive, MAX_DOCUMENT))
        refused: dict[str, S3Error] = {}
        for key in keys:
            try:
                asking.check_key(key)
                await self._accounts.authorize(call.caller, call.asked.action, asking.arn(call.asked.bucket, key))
            except S3Error as error:
                refused[key] = error
            except Denied as error:
                refused[key] = access_denied(str(error))
        allowed = [key for key in keys if key not in refused]
        status, document, request_id = 200, None, new_request_id()
        if allowed:
            async with self._exchange(call, documents.delete_request(allowed, is_quiet)) as response:
                status, document, request_id = response.status_code, await response.aread(), _request_id(response)
        if status == 200:
            document = documents.delete_result(document, refused)
        await _answer(call.send, Answer(status, document or b"", content_type=XML), request_id)

    async def _body(self, call: _Call) -> AsyncIterator[bytes] | None:
        """What goes on of the body; one that must be empty, or is of no meaning, has been read."""
        if call.payload.length and call.asked.method in _HAS_BODY:
            return call.payload.pieces(call.receive)
        await call.payload.whole(call.receive, MAX_DOCUMENT)
        return None

    async def _pass_on(self, call: _Call, body: AsyncIterator[bytes] | bytes | None) -> int:
        """The status that rclone answered with."""
        asked = call.asked
        copied = call.headers.get("x-amz-copy-source") if asked.action == "s3:PutObject" else None
        source = await self._authorized_source(call, copied) if copied is not None else None
        async with self._exchange(call, body, source) as response:
            if response.status_code == 404 and asked.action == "s3:GetObject":
                # Whoever may not list a bucket does not learn either what is not in it.
                await self._accounts.authorize(call.caller, "s3:ListBucket", asking.arn(asked.bucket))
            await _give_back(response, call.send)
            return response.status_code

    async def _authorized_source(self, call: _Call, header: str) -> str:
        """Where an object is copied from, as rclone gets it. Raises S3Error, Denied."""
        if call.asked.subresource:
            raise S3Error("NotImplemented", "The embedded S3 does not copy an object as a part of another.")
        bucket, key = asking.source_of(header)
        await self._authorize(call.caller, Asked("s3:GetObject", "GET", bucket, key))
        return "/" + asking.place(bucket, key)

    @asynccontextmanager
    async def _exchange(self, call: _Call, body: AsyncIterator[bytes] | bytes | None,
                        source: str | None = None) -> AsyncIterator[httpx.Response]:
        """Ask rclone. Raises S3Error when it cannot be asked, and what `body` raises."""
        headers = {name: value for name, value in call.headers.items()
                   if name in _PASSED or name.startswith(_PASSED_KINDS)}
        if coding := _without_framing(headers.pop("content-encoding", "")):
            headers["content-encoding"] = coding
        if source is not None:
            headers["x-amz-copy-source"] = source
        if isinstance(body, bytes):
            headers["content-length"] = str(len(body))
            headers.pop("content-md5", None)
        elif call.asked.method in _HAS_BODY:
            headers["content-length"] = str(call.payload.length)
        request = self._rclone.build_request(
            call.asked.method, "http://s3/", content=body, extensions={"target": call.asked.target},
            headers=[(name.encode(), value.encode("latin-1")) for name, value in headers.items()])
        for name in ("accept", "accept-encoding", "user-agent"):
            request.headers.pop(name, None)
        try:
            response = await self._rclone.send(request, stream=True)
        except httpx.TransportError as error:
            _log.warning("the embedded S3 does not answer: %s", type(error).__name__)
            raise S3Error("ServiceUnavailable", "Please reduce your request rate.") from error
        try:
            yield response
        finally:
            await response.aclose()


def _refusal(error: Exception, scope: Scope, request_id: str) -> S3Error:
    if isinstance(error, S3Error):
        return error
    if isinstance(error, WireError):
        return of_signature(error, _is_presigned(scope))
    if isinstance(error, Denied):
        return access_denied(str(error))
    _log.error("request %s to the embedded S3 failed", request_id, exc_info=error, extra={"request_id": request_id})
    return S3Error("InternalError", "We encountered an internal error. Please try again.")


def _is_presigned(scope: Scope) -> bool:
    return b"X-Amz-Signature=" in scope["query_string"] or b"X-Amz-Algorithm=" in scope["query_string"]


def _check_signed(headers: Mapping[str, str], proof: Proof) -> None:
    # What was put in on the way would otherwise count as the client's word.
    if any(name.startswith("x-amz-") and name not in proof.signed_headers for name in headers):
        raise access_denied("There were headers present in the request which were not signed")


def _without_framing(coding: str) -> str:
    return ",".join(part for part in (each.strip() for each in coding.split(",")) if part and part != "aws-chunked")


def _request_id(response: httpx.Response) -> str:
    return response.headers.get("x-amz-request-id", "")  # type: ignore[no-any-return]


async def _give_back(response: httpx.Response, send: Send) -> None:
    headers = [(name.lower(), value) for name, value in response.headers.raw if name.lower() not in _OWN]
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    async for piece in response.aiter_raw():
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _answer(send: Send, answer: Answer, request_id: str, *, is_last: bool = False) -> None:
    headers = [(b"x-amz-request-id", request_id.encode()), (b"content-type", answer.content_type),
               (b"content-length", str(len(answer.body)).encode()), *([(b"connection", b"close")] if is_last else [])]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
