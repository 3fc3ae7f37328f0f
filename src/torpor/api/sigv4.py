"""Signature Version 4: who signed this request, and is it what they signed?

Written for a server: one pass, no request object, the signing key derived once per key, day and region. Secrets and
signatures are compared in constant time and appear in no message.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Final
from urllib.parse import parse_qsl, quote, unquote_to_bytes

from torpor.api import chunked
from torpor.api.errors import (
    IncompleteSignature,
    InvalidSignature,
    MissingAuthentication,
    SignatureExpired,
    SignatureMismatch,
    SignatureNotYetCurrent,
    UnknownKey,
    WireError,
    WrongToken,
)
from torpor.model.account import Credential

ALGORITHM: Final = "AWS4-HMAC-SHA256"
SERVICE: Final = "lambda"
ALLOWED_SKEW: Final = timedelta(minutes=5)
MAX_PRESIGNED: Final = timedelta(days=7)
UNSIGNED: Final = "UNSIGNED-PAYLOAD"

_MAX_CACHED_KEYS: Final = 1024
_HEX_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_PLAIN_PATH: Final = re.compile(r"/[A-Za-z0-9\-_~/]*")
_EXPIRES: Final = re.compile(r"[0-9]{1,7}")

Headers = Mapping[str, str]
"""Lower-case names; the values of a repeated one joined by commas."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a signature covers."""

    method: str
    raw_path: str
    """As it was sent, without the query."""
    raw_query: str
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class Rules:
    """What services do differently."""

    service: str
    skew: timedelta = ALLOWED_SKEW
    is_path_encoded_twice: bool = True


S3: Final = Rules("s3", timedelta(minutes=15), is_path_encoded_twice=False)


@dataclass(frozen=True, slots=True)
class Proof:
    """Whose signature the head of a request carries; it covers the body as far as the payload's hash says so."""

    credential: Credential
    region: str
    signed_headers: frozenset[str]
    seed: chunked.Seed


@dataclass(frozen=True, slots=True)
class Verified:
    credential: Credential
    region: str
    body: bytes
    """Without the framing of a chunked payload."""


@dataclass(frozen=True, slots=True)
class _Scope:
    access_key_id: str
    date: str
    region: str
    service: str

    def __str__(self) -> str:
        return f"{self.date}/{self.region}/{self.service}/aws4_request"


@dataclass(frozen=True, slots=True)
class _Claim:
    """What a request says about its own signature."""

    scope: _Scope
    signed_headers: Sequence[str]
    signature: str
    stamp: str
    """ISO 8601 basic."""
    signed_at: datetime
    session_token: str | None
    valid_for: timedelta
    query: str
    """Raw, without the signature itself."""


class Verifier:
    """Verifies requests against the keys that `credential` knows."""

    def __init__(self, credential: Callable[[str], Credential | None], now: Callable[[], datetime]) -> None:
        self._credential = credential
        self._now = now
        self._keys: dict[tuple[str, str, str, str, str], bytes] = {}

    def verify(self, request: Request, service: str = SERVICE) -> Verified:
        """Raises one of the `WireError`s of signatures; the order of checks is AWS's as far as it is known."""
        rules = Rules(service)
        claim, credential = self._claimed(request, rules)
        payload = _payload_hash(request)
        seed = self._proved(request, claim, credential, payload, rules)
        body = request.body
        if payload in chunked.KINDS:
            body = chunked.decode(body, seed, payload)
        return Verified(credential, claim.scope.region, body)

    def prove(self, request: Request, payload: str, rules: Rules) -> Proof:
        """Verify a request whose body is still to come and must turn out to be what `payload` says; raises as `verify`.

        `request.body` is not looked at.
        """
        claim, credential = self._claimed(request, rules)
        seed = self._proved(request, claim, credential, payload, rules)
        return Proof(credential, claim.scope.region, frozenset(claim.signed_headers), seed)

    def _claimed(self, request: Request, rules: Rules) -> tuple[_Claim, Credential]:
        claim = _claim(request, rules)
        _check_service(claim.scope, rules.service)
        credential = self._credential(claim.scope.access_key_id)
        if credential is None:
            raise UnknownKey
        if not _has_token(credential, claim.session_token):
            raise WrongToken
        _check_time(claim, self._now(), rules.skew)
        return claim, credential

    def _proved(self, request: Request, claim: _Claim, credential: Credential, payload: str,
                rules: Rules) -> chunked.Seed:
        key = self._signing_key(credential.secret, claim.scope)
        canonical = "\n".join((
            request.method,
            (_canonical_path if rules.is_path_encoded_twice else _once_encoded)(request.raw_path),
            _canonical_query(claim.query),
            *(f"{name}:{_trimmed(request.headers.get(name, ''))}" for name in claim.signed_headers),
            "",
            ";".join(claim.signed_headers),
            payload,
        ))
        digest = hashlib.sha256(canonical.encode("latin-1", "replace")).hexdigest()
        text = f"{ALGORITHM}\n{claim.stamp}\n{claim.scope}\n{digest}"
        expected = hmac.digest(key, text.encode(), "sha256").hex()
        if not hmac.compare_digest(expected, claim.signature):
            raise SignatureMismatch
        return chunked.Seed(key, claim.stamp, str(claim.scope), claim.signature)

    def _signing_key(self, secret: str, scope: _Scope) -> bytes:
        # The secret is part of the cache's key, so a key that was replaced is not verified with its old secret.
        cached = (scope.access_key_id, secret, scope.date, scope.region, scope.service)
        key = self._keys.get(cached)
        if key is None:
            key = f"AWS4{secret}".encode()
            for part in (scope.date, scope.region, scope.service, "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            if len(self._keys) >= _MAX_CACHED_KEYS:
                self._keys.clear()
            self._keys[cached] = key
        return key


def access_key_id(request: Request) -> str | None:
    """The key that a request names, which nothing has been verified of; None when it names none."""
    try:
        return _claim(request, S3).scope.access_key_id
    except WireError:
        return None


def _claim(request: Request, rules: Rules) -> _Claim:
    header = request.headers.get("authorization")
    if header is not None:
        return _header_claim(request, header, rules)
    if "X-Amz-Algorithm=" in request.raw_query or "X-Amz-Signature=" in request.raw_query:
        return _query_claim(request)
    raise MissingAuthentication


def _header_claim(request: Request, header: str, rules: Rules) -> _Claim:
    algorithm, _, rest = header.partition(" ")
    if algorithm != ALGORITHM:
        raise IncompleteSignature(f"Unsupported AWS 'algorithm': '{algorithm[:64]}'")
    parts = dict(part.strip().partition("=")[::2] for part in rest.split(","))
    missing = [name for name in ("Credential", "Signature", "SignedHeaders") if not parts.get(name)]
    stamp, signed_at = _header_date(request.headers)
    if stamp is None:
        missing.append("")
    if missing:
        raise IncompleteSignature(" ".join(
            f"Authorization header requires '{name}' parameter." if name else
            "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header."
            for name in missing))
    assert stamp is not None
    assert signed_at is not None
    return _Claim(
        _scope(parts["Credential"], stamp), _signed_headers(parts["SignedHeaders"]), _ascii(parts["Signature"]),
        stamp, signed_at, request.headers.get("x-amz-security-token"), rules.skew, request.raw_query)


def _header_date(headers: Headers) -> tuple[str | None, datetime | None]:
    stamp = headers.get("x-amz-date")
    if stamp is not None:
        return stamp, _moment(stamp)
    date = headers.get("date")
    if date is None:
        return None, None
    try:
        moment = parsedate_to_datetime(date)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return date, _moment(date)
    return moment.strftime("%Y%m%dT%H%M%SZ"), moment


def _query_claim(request: Request) -> _Claim:
    try:
        given = dict(parse_qsl(request.raw_query, keep_blank_values=True, errors="strict", max_num_fields=1000))
    except ValueError as error:
        raise IncompleteSignature("The query string could not be read") from error
    if given.get("X-Amz-Algorithm") != ALGORITHM:
        raise IncompleteSignature("Unsupported AWS 'algorithm'")
    names = ("Credential", "Date", "Expires", "Signature", "SignedHeaders")
    missing = [name for name in names if not given.get(f"X-Amz-{name}")]
    if missing:
        raise IncompleteSignature(" ".join(
            f"AWS query-string parameters must include 'X-Amz-{name}'." for name in missing))
    expires = given["X-Amz-Expires"]
    valid_for = timedelta(seconds=int(expires)) if _EXPIRES.fullmatch(expires) else timedelta()
    if not timedelta() < valid_for <= MAX_PRESIGNED:
        raise IncompleteSignature("X-Amz-Expires must be between 1 and 604800 seconds")
    stamp = given["X-Amz-Date"]
    query = "&".join(p for p in request.raw_query.split("&") if not p.startswith("X-Amz-Signature="))
    return _Claim(
        _scope(given["X-Amz-Credential"], stamp), _signed_headers(given["X-Amz-SignedHeaders"]),
        _ascii(given["X-Amz-Signature"]), stamp, _moment(stamp), given.get("X-Amz-Security-Token"), valid_for, query)


@lru_cache(maxsize=64)
def _moment(stamp: str) -> datetime:
    # Cached: all requests of one second carry the same, and strptime costs as much as the signature.
    try:
        return datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise IncompleteSignature("Date must be in ISO-8601 'basic format'") from error


def _scope(text: str, stamp: str) -> _Scope:
    # From the right: nothing but the key id could hold a slash.
    parts = text.rsplit("/", 4)
    if len(parts) != 5 or not all(parts):
        raise IncompleteSignature("Credential must have exactly 5 slash-delimited elements, "
                                  "e.g. keyid/date/region/service/term")
    access_key_id, date, region, service, term = parts
    if term != "aws4_request":
        raise InvalidSignature("Credential should be scoped with a valid terminator: 'aws4_request'.")
    if date != stamp[:8]:
        raise InvalidSignature("Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from "
                               f"HTTP: '{date[:16]}' != '{stamp[:8]}', from '{stamp[:32]}'.")
    return _Scope(access_key_id, date, region, service)


def _check_service(scope: _Scope, service: str) -> None:
    if scope.service != service:
        raise InvalidSignature(f"Credential should be scoped to correct service: '{service}'.")


def _signed_headers(text: str) -> list[str]:
    names = text.lower().split(";")
    # ":authority" is how a signer over HTTP/2 may call it.
    if "host" not in names and ":authority" not in names:
        raise InvalidSignature("'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
    return names


def _ascii(signature: str) -> str:
    # compare_digest takes no other text.
    if not signature.isascii():
        raise SignatureMismatch
    return signature


def _has_token(credential: Credential, given: str | None) -> bool:
    """Whether the session token is the key's own. A session that has ended is not known any more."""
    expected = credential.session_token
    if expected is None or given is None:
        return expected is given
    return hmac.compare_digest(expected.encode(), given.encode("utf-8", "surrogateescape"))


def _check_time(claim: _Claim, now: datetime, skew: timedelta) -> None:
    if claim.signed_at + claim.valid_for < now:
        raise SignatureExpired(claim.signed_at, now, claim.valid_for)
    if claim.signed_at > now + skew:
        raise SignatureNotYetCurrent(claim.signed_at, now, skew)


def _payload_hash(request: Request) -> str:
    """What stands in the canonical request; a digest must be that of the body."""
    declared = request.headers.get("x-amz-content-sha256")
    if declared == UNSIGNED or declared in chunked.KINDS:
        return declared
    digest = hashlib.sha256(request.body).hexdigest()
    if declared is not None and _HEX_DIGEST.fullmatch(declared) and declared != digest:
        raise SignatureMismatch
    return digest


def _canonical_path(raw_path: str) -> str:
    """The path as sent, encoded once more: what every service but S3 signs."""
    if not raw_path:
        return "/"
    if _PLAIN_PATH.fullmatch(raw_path) and "//" not in raw_path:
        return raw_path
    return quote(_without_dots(raw_path), safe="/~", encoding="latin-1")


def _once_encoded(raw_path: str) -> str:
    """What S3 signs: dots and empty segments are part of a key, and whatever the client encoded is encoded anew."""
    return quote(unquote_to_bytes(raw_path), safe="/-_.~") or "/"


def _without_dots(path: str) -> str:
    """RFC 3986 section 5.2.4, with empty segments dropped too."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    last = "/" if kept and path.endswith("/") else ""
    return f"/{'/'.join(kept)}{last}"


def _canonical_query(raw_query: str) -> str:
    if not raw_query:
        return ""
    pairs = (pair.partition("=") for pair in raw_query.split("&") if pair)
    return "&".join(f"{name}={value}" for name, value in sorted((_encoded(n), _encoded(v)) for n, _, v in pairs))


def _encoded(text: str) -> str:
    return quote(unquote_to_bytes(text), safe="-_.~")


def _trimmed(value: str) -> str:
    return " ".join(value.split()) if "  " in value else value.strip()
