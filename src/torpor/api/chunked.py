"""Payloads in `aws-chunked` framing: signed chunks, each signature covering the one before, and trailers.

Control-plane requests rarely come so; uploads to S3, and SDKs and proxies that stream their bodies, do.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final

from torpor.api.errors import SignatureMismatch, Unreadable

SIGNED: Final = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
SIGNED_TRAILER: Final = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
UNSIGNED_TRAILER: Final = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
KINDS: Final = frozenset({SIGNED, SIGNED_TRAILER, UNSIGNED_TRAILER})

_HEADER: Final = re.compile(rb"([0-9a-fA-F]{1,8})(?:;chunk-signature=([0-9a-f]{64}))?")
_EMPTY: Final = hashlib.sha256(b"").hexdigest()
_CRLF: Final = b"\r\n"
_LONGEST_HEADER: Final = 128
_LONGEST_TRAILER: Final = 16 * 1024
_TRAILER_SIGNATURE: Final = "x-amz-trailer-signature"


@dataclass(frozen=True, slots=True)
class Seed:
    """Where the chain of chunk signatures begins: the request's own."""

    key: bytes
    stamp: str
    scope: str
    signature: str

    def next(self, signature: str) -> Seed:
        return Seed(self.key, self.stamp, self.scope, signature)

    def sign(self, purpose: str, *digests: str) -> str:
        text = "\n".join((f"AWS4-HMAC-SHA256-{purpose}", self.stamp, self.scope, self.signature, *digests))
        return hmac.digest(self.key, text.encode(), "sha256").hex()


class Decoder:
    """Takes the framing off a body that comes piece by piece, and keeps none of it.

    A chunk is given on before its signature can be checked: what is given on is good only once `finish` has returned.
    """

    def __init__(self, seed: Seed, kind: str) -> None:
        self._seed = seed
        self._kind = kind
        self._kept = b""
        """The beginning of a line that goes on in the next piece; after the last chunk, the trailer."""
        self._left = 0
        """Bytes of the present chunk that are still to come."""
        self._given: bytes | None = None
        self._digest = hashlib.sha256()
        self._is_behind_chunk = False
        self._is_over = False

    def feed(self, data: bytes) -> list[bytes]:
        """The parts of the payload that this piece holds; raises as `decode`."""
        data, at = (self._kept + data if self._kept else data), 0
        self._kept = b""
        parts: list[bytes] = []
        while at < len(data) and not self._is_over:
            if self._left:
                parts.append(part := data[at:at + self._left])
                at += len(part)
                self._take(part)
                continue
            end = data.find(_CRLF, at)
            if end < 0 or (self._is_behind_chunk and end > at):
                break
            self._line(data[at:end])
            at = end + 2
        self._kept = data[at:]
        if self._is_over:
            if len(self._kept) > _LONGEST_TRAILER:
                raise Unreadable("The trailer is too long")
        elif self._is_behind_chunk and self._kept not in (b"", b"\r"):
            raise Unreadable("A chunk is not as long as its header says")
        elif len(self._kept) > _LONGEST_HEADER:
            raise Unreadable("A chunk's header could not be read")
        return parts

    def finish(self) -> dict[str, str]:
        """The trailer, by lower-case names, when the body has ended; raises as `decode`."""
        if not self._is_over:
            raise Unreadable("The body ends before its last chunk")
        lines = (line.partition(b":") for line in self._kept.split(_CRLF) if line)
        trailer = {name.strip().lower().decode("latin-1"): value.strip().decode("latin-1") for name, _, value in lines}
        signature = trailer.pop(_TRAILER_SIGNATURE, None)
        if self._kind == SIGNED_TRAILER:
            covered = "".join(f"{name}:{value}\n" for name, value in trailer.items())
            self._check("TRAILER", signature.encode("latin-1") if signature is not None else None,
                        hashlib.sha256(covered.encode("latin-1")).hexdigest())
        return trailer

    def _line(self, line: bytes) -> None:
        if self._is_behind_chunk:
            self._is_behind_chunk = False
            return
        header = _HEADER.fullmatch(line)
        if header is None:
            raise Unreadable("A chunk's header could not be read")
        self._left, self._given, self._digest = int(header[1], 16), header[2], hashlib.sha256()
        if self._left == 0:
            self._end_chunk()
            self._is_over = True

    def _take(self, part: bytes) -> None:
        self._left -= len(part)
        if self._kind != UNSIGNED_TRAILER:
            self._digest.update(part)
        if self._left == 0:
            self._end_chunk()
            self._is_behind_chunk = True

    def _end_chunk(self) -> None:
        if self._kind != UNSIGNED_TRAILER:
            self._check("PAYLOAD", self._given, _EMPTY, self._digest.hexdigest())

    def _check(self, purpose: str, given: bytes | None, *digests: str) -> None:
        expected = self._seed.sign(purpose, *digests)
        if given is None or not hmac.compare_digest(expected.encode(), given):
            raise SignatureMismatch
        self._seed = self._seed.next(expected)


def decode(body: bytes, seed: Seed, kind: str) -> bytes:
    """The payload of a whole body without its framing.

    Raises:
        Unreadable: the framing is broken.
        SignatureMismatch: a chunk or the trailer is not what was signed.
    """
    decoder = Decoder(seed, kind)
    payload = b"".join(decoder.feed(body))
    decoder.finish()
    return payload
