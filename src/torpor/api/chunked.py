"""Payloads in `aws-chunked` framing: signed chunks, each signature covering the one before, and trailers.

Control-plane requests rarely come so; SDKs and proxies that stream their bodies may.
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


def decode(body: bytes, seed: Seed, kind: str) -> bytes:
    """The payload without its framing.

    Raises:
        Unreadable: the framing is broken.
        SignatureMismatch: a chunk or the trailer is not what was signed.
    """
    payload, at = bytearray(), 0
    while True:
        end = body.find(_CRLF, at)
        header = _HEADER.fullmatch(body[at:end]) if end >= 0 else None
        if header is None:
            raise Unreadable("A chunk's header could not be read")
        size, start = int(header[1], 16), end + 2
        chunk = body[start:start + size]
        if kind != UNSIGNED_TRAILER:
            seed = _checked(seed, "PAYLOAD", header[2], _EMPTY, hashlib.sha256(chunk).hexdigest())
        at = start + size
        if size == 0:
            break
        if body[at:at + 2] != _CRLF:
            raise Unreadable("A chunk is shorter than its header says")
        payload += chunk
        at += 2
    if kind == SIGNED_TRAILER:
        _check_trailer(body[at:], seed)
    return bytes(payload)


def _checked(seed: Seed, purpose: str, given: bytes | None, *digests: str) -> Seed:
    expected = seed.sign(purpose, *digests)
    if given is None or not hmac.compare_digest(expected.encode(), given):
        raise SignatureMismatch
    return seed.next(expected)


def _check_trailer(rest: bytes, seed: Seed) -> None:
    lines = [line.partition(b":") for line in rest.split(_CRLF) if line]
    signature = next((value.strip() for name, _, value in lines if name == b"x-amz-trailer-signature"), None)
    covered = b"".join(b"%s:%s\n" % (name.strip().lower(), value.strip())
                       for name, _, value in lines if name != b"x-amz-trailer-signature")
    _checked(seed, "TRAILER", signature, hashlib.sha256(covered).hexdigest())
