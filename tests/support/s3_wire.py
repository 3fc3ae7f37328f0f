"""Requests to the embedded S3 signed and sent without an SDK, which would write some of them in another way."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from datetime import UTC, datetime
from urllib.parse import quote, unquote_to_bytes

from torpor.api import chunked
from torpor.model.account import Credential

REGION = "us-east-1"


def signed_for_s3(url: str, key: Credential, method: str, path: str, body: bytes,
                  headers: dict[str, str]) -> tuple[str, str, dict[str, str]]:
    """Method, path and headers, signed; the body's digest unless the headers name what stands for it."""
    head, _ = head_and_seed(url, key, method, path, {
        "x-amz-content-sha256": hashlib.sha256(body).hexdigest(), "content-length": str(len(body)), **headers})
    return method, path, head


def head_and_seed(url: str, key: Credential, method: str, path: str,
                  headers: dict[str, str]) -> tuple[dict[str, str], chunked.Seed]:
    """Signed headers, and the seed of the chunks' signatures."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    head = {**headers, "host": url.partition("://")[2], "x-amz-date": stamp}
    if key.session_token is not None:
        head["x-amz-security-token"] = key.session_token
    names = sorted(head)
    raw_path, _, raw_query = path.partition("?")
    pairs = sorted((quote(unquote_to_bytes(name), safe="-_.~"), quote(unquote_to_bytes(value), safe="-_.~"))
                   for name, _, value in (pair.partition("=") for pair in raw_query.split("&") if pair))
    canonical = "\n".join((
        method, quote(unquote_to_bytes(raw_path), safe="/-_.~"), "&".join(f"{name}={value}" for name, value in pairs),
        *(f"{name}:{head[name]}" for name in names), "", ";".join(names), head["x-amz-content-sha256"]))
    scope = f"{stamp[:8]}/{REGION}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    secret = f"AWS4{key.secret}".encode()
    for part in scope.split("/"):
        secret = hmac.digest(secret, part.encode(), "sha256")
    signature = hmac.digest(secret, text.encode(), "sha256").hex()
    head["authorization"] = (f"AWS4-HMAC-SHA256 Credential={key.access_key_id}/{scope}, "
                             f"SignedHeaders={';'.join(names)}, Signature={signature}")
    return head, chunked.Seed(secret, stamp, scope, signature)


def framed(parts: list[bytes], seed: chunked.Seed | None, trailer: dict[str, str] | None = None) -> bytes:
    """Chunks, signed unless there is no seed, with an optional trailer, signed as well."""
    body = b""
    for part in [*parts, b""]:
        body += b"%x" % len(part)
        if seed is not None:
            signature = seed.sign("PAYLOAD", hashlib.sha256(b"").hexdigest(), hashlib.sha256(part).hexdigest())
            body += f";chunk-signature={signature}".encode()
            seed = seed.next(signature)
        body += b"\r\n" + (part + b"\r\n" if part else b"")
    lines = dict(trailer or {})
    if seed is not None and lines:
        covered = "".join(f"{name}:{value}\n" for name, value in lines.items())
        lines["x-amz-trailer-signature"] = seed.sign("TRAILER", hashlib.sha256(covered.encode()).hexdigest())
    return body + "".join(f"{name}:{value}\r\n" for name, value in lines.items()).encode() + b"\r\n"


async def exchange(url: str, request: tuple[str, str, dict[str, str]], body: bytes) -> tuple[int, str]:
    """Status and body; the path goes out as it is."""
    method, path, headers = request
    host, _, port = url.partition("://")[2].rpartition(":")
    async with asyncio.timeout(30):
        reader, writer = await asyncio.open_connection(host, int(port))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()),
                 "connection: close"]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        answer = await reader.read()
        writer.close()
    head, _, text = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), text.decode()
