"""The body of a request as it passes through: never held, and whole only when it is what was signed.

The last piece is kept back until everything that was declared of the body (digest, signed chunks, checksums, length)
has turned out to be so. What is behind us has not got the whole body until then, and keeps nothing of a part of one.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import zlib
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final, Protocol

from torpor.api import chunked
from torpor.api.asgi import Disconnected, Receive
from torpor.api.s3.errors import S3Error
from torpor.api.sigv4 import UNSIGNED

IDLE: Final = 60.0
"""Seconds that a client may take for the next piece of its body."""
_HEX_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_LENGTH: Final = re.compile(r"[0-9]{1,15}")


class _Sum(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


_SUMS: Final[Mapping[str, Callable[[], _Sum]]] = {
    "x-amz-checksum-crc32": _Crc32, "x-amz-checksum-sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "x-amz-checksum-sha256": hashlib.sha256,
}  # fmt: skip
"""Those that the standard library can make; CRC32C and CRC64NVME are not compared."""


def declared(headers: Mapping[str, str], is_presigned: bool) -> str:
    """What stands for the payload in the canonical request. Raises S3Error."""
    value = headers.get("x-amz-content-sha256")
    if value is None:
        if is_presigned:
            return UNSIGNED
        raise S3Error("InvalidRequest", "Missing required header for this request: x-amz-content-sha256")
    if value == UNSIGNED or value in chunked.KINDS or _HEX_DIGEST.fullmatch(value):
        return value
    raise S3Error("InvalidArgument", "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, a STREAMING- value that the "
                  "embedded S3 knows, or a valid sha256 value.")


class Payload:
    """The body of one request, whose head has been verified."""

    def __init__(self, headers: Mapping[str, str], kind: str, seed: chunked.Seed) -> None:
        self._decoder = chunked.Decoder(seed, kind) if kind in chunked.KINDS else None
        self._digest = hashlib.sha256() if _HEX_DIGEST.fullmatch(kind) else None
        self._kind = kind
        named = {name.strip().lower() for name in headers.get("x-amz-trailer", "").split(",")}
        self._sums = {name: make() for name, make in _SUMS.items() if name in headers or name in named}
        self._expected = {name: headers[name] for name in self._sums if name in headers}
        self.length = _length(headers, self._decoder is not None)
        """Of the payload, without framing."""

    async def pieces(self, receive: Receive) -> AsyncIterator[bytes]:
        """The payload.

        Raises:
            S3Error, SignatureMismatch, Unreadable: it is not what was declared.
            Disconnected: the client went away.
        """
        held, passed = b"", 0
        async for piece in self._unframed(receive):
            passed += len(piece)
            if passed > self.length:
                raise S3Error("IncompleteBody", "The request body is longer than was declared.")
            for each in self._sums.values():
                each.update(piece)
            if held:
                yield held
            held = piece
        if passed != self.length:
            raise S3Error("IncompleteBody", "The request body terminated before it had the declared number of bytes.")
        self._finish()
        if held:
            yield held

    async def whole(self, receive: Receive, at_most: int) -> bytes:
        """All of a short one; raises as `pieces`, and S3Error when it is longer than `at_most`."""
        if self.length > at_most:
            raise S3Error("EntityTooLarge", f"The body of this request must not be longer than {at_most} bytes.")
        return b"".join([piece async for piece in self.pieces(receive)])

    async def _unframed(self, receive: Receive) -> AsyncIterator[bytes]:
        is_more = True
        while is_more:
            try:
                async with asyncio.timeout(IDLE):
                    message = await receive()
            except TimeoutError:
                raise S3Error("RequestTimeout", "Your socket connection to the server was not read from or written to "
                              "within the timeout period.") from None
            if message["type"] == "http.disconnect":
                raise Disconnected
            data, is_more = message.get("body", b""), message.get("more_body", False)
            if self._digest is not None:
                self._digest.update(data)
            for piece in [data] if self._decoder is None else self._decoder.feed(data):
                if piece:
                    yield piece

    def _finish(self) -> None:
        if self._digest is not None and not hmac.compare_digest(self._digest.hexdigest(), self._kind):
            raise S3Error("XAmzContentSHA256Mismatch",
                          "The provided 'x-amz-content-sha256' header does not match what was computed.")
        expected = {**self._expected, **(self._decoder.finish() if self._decoder is not None else {})}
        for name, made in self._sums.items():
            if name in expected and b64encode(made.digest()).decode() != expected[name]:
                raise S3Error("BadDigest", f"The {name} you specified did not match what we calculated.")


def _length(headers: Mapping[str, str], is_framed: bool) -> int:
    if is_framed:
        text = headers.get("x-amz-decoded-content-length")
    else:
        text = headers.get("content-length", None if "transfer-encoding" in headers else "0")
    if text is None:
        raise S3Error("MissingContentLength", "You must provide the Content-Length HTTP header.")
    if not _LENGTH.fullmatch(text):
        raise S3Error("InvalidArgument", f"A length in bytes is a number, not {text[:32]!r}")
    return int(text)
