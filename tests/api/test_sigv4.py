"""Signatures made by botocore's own signers, and everything that can be wrong with one (spec 1.1, 1.11)."""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import pytest
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from torpor.api import chunked, errors
from torpor.api.sigv4 import Request, Verifier
from torpor.model.account import Credential
from torpor.model.ids import AccountId

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
KEY = Credential("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", None, AccountId("000000000000"),
                 "arn:aws:iam::000000000000:root")
SESSION = Credential("ASIAEXAMPLE", "secret", "tok/en==", AccountId("000000000000"),
                     "arn:aws:sts::000000000000:assumed-role/r/s", NOW + timedelta(hours=1))
URL = "http://127.0.0.1:7060/2025-09-09/microvm-images/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Amicrovm-image%3An"


def verifier(now: datetime = NOW) -> Verifier:
    return Verifier({KEY.access_key_id: KEY, SESSION.access_key_id: SESSION}.get, lambda: now)


def sign(url: str = URL, *, method: str = "GET", body: bytes = b"", headers: dict[str, str] | None = None,
         credential: Credential = KEY, secret: str | None = None, signer: Any = SigV4Auth, service: str = "lambda",
         region: str = "us-east-1", at: datetime = NOW, **options: Any) -> Request:
    aws = AWSRequest(method=method, url=url, data=body, headers=headers or {})
    keys = Credentials(credential.access_key_id, secret or credential.secret, credential.session_token)
    with patch("botocore.auth.get_current_datetime", lambda *_, **__: at.replace(tzinfo=None)):
        signer(keys, service, region, **options).add_auth(aws)
    return received(aws, body)


def received(aws: AWSRequest, body: bytes) -> Request:
    path, _, query = aws.prepare().url.partition("://")[2].partition("/")[2].partition("?")
    headers = {name.lower(): value.decode() if isinstance(value, bytes) else value for name, value in
               aws.headers.items()}
    headers.setdefault("host", "127.0.0.1:7060")
    return Request(aws.method, f"/{path}", query, headers, body)


def changed(request: Request, **changes: Any) -> Request:
    values = {name: getattr(request, name) for name in ("method", "raw_path", "raw_query", "headers", "body")}
    return Request(**{**values, **changes})


def with_headers(request: Request, **headers: str | None) -> Request:
    merged = {**request.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return changed(request, headers={name: value for name, value in merged.items() if value is not None})


@pytest.mark.parametrize("url", [
    URL,
    URL.replace("%3A", ":"),
    f"{URL}?tagKeys=a%20b&tagKeys=c%2Fd&tagKeys=%C3%A9",
    f"{URL}?b=2&a=1&a=%3D",
    f"{URL}?maxResults=",
    "http://127.0.0.1:7060/",
    "http://127.0.0.1:7060/2025-09-09//microvms/../microvms/",
    "http://127.0.0.1:7060/2025-09-09/microvms/a~b_c-d.e%2520f",
])
def test_what_botocore_signs_is_verified(url: str) -> None:
    verified = verifier().verify(sign(url))
    assert verified.credential is KEY
    assert verified.region == "us-east-1"


def test_a_presigned_url_is_verified_until_it_expires() -> None:
    request = sign(f"{URL}?maxResults=3", signer=SigV4QueryAuth, expires=60)
    assert verifier(NOW + timedelta(seconds=59)).verify(request).credential is KEY
    with pytest.raises(errors.SignatureExpired):
        verifier(NOW + timedelta(seconds=61)).verify(request)


def test_a_presigned_url_with_another_query_does_not_match() -> None:
    request = sign(f"{URL}?maxResults=3", signer=SigV4QueryAuth, expires=60)
    with pytest.raises(errors.SignatureMismatch):
        verifier().verify(changed(request, raw_query=request.raw_query.replace("maxResults=3", "maxResults=4")))


@pytest.mark.parametrize("signer", [SigV4Auth, SigV4QueryAuth])
def test_a_session_is_verified_with_its_token(signer: Any) -> None:
    assert verifier().verify(sign(credential=SESSION, signer=signer)).credential is SESSION


@pytest.mark.parametrize("token", [None, "other", "é"])
def test_a_session_without_its_own_token_is_unknown(token: str | None) -> None:
    with pytest.raises(errors.UnknownKey, match="The security token included in the request is invalid"):
        verifier().verify(with_headers(sign(credential=SESSION), x_amz_security_token=token))


def test_an_unknown_key_is_refused_before_its_signature_is_looked_at() -> None:
    with pytest.raises(errors.UnknownKey):
        verifier().verify(sign(credential=Credential("AKIDOTHER", "x", None, KEY.account, KEY.principal)))


def test_a_wrong_secret_does_not_match() -> None:
    with pytest.raises(errors.SignatureMismatch, match="does not match the signature you provided"):
        verifier().verify(sign(secret="other"))


def test_a_request_without_a_signature_says_so() -> None:
    with pytest.raises(errors.MissingAuthentication, match="Missing Authentication Token"):
        verifier().verify(with_headers(sign(), authorization=None))


@pytest.mark.parametrize("change", [
    {"method": "DELETE"},
    {"raw_path": "/2025-09-09/microvms"},
    {"raw_query": "maxResults=1"},
    {"body": b"{}"},
])
def test_a_changed_request_does_not_match(change: dict[str, Any]) -> None:
    with pytest.raises(errors.SignatureMismatch):
        verifier().verify(changed(sign(), **change))


def test_a_changed_header_that_was_signed_does_not_match() -> None:
    request = sign(headers={"content-type": "application/json"})
    with pytest.raises(errors.SignatureMismatch):
        verifier().verify(with_headers(request, host="elsewhere"))
    with pytest.raises(errors.SignatureMismatch):
        verifier().verify(with_headers(request, content_type="text/plain"))
    assert verifier().verify(with_headers(request, user_agent="another"))


@pytest.mark.parametrize(("skew", "refusal", "text"), [
    (-301, errors.SignatureExpired,
     r"Signature expired: 20260301T115459Z is now earlier than 20260301T115500Z \(20260301T120000Z - 5 min\.\)"),
    (301, errors.SignatureNotYetCurrent,
     (r"Signature not yet current: 20260301T120501Z is still later than 20260301T120500Z "
     r"\(20260301T120000Z \+ 5 min\.\)")),
])
def test_a_clock_more_than_five_minutes_off_is_refused(skew: int, refusal: type[Exception], text: str) -> None:
    with pytest.raises(refusal, match=text):
        verifier().verify(sign(at=NOW + timedelta(seconds=skew)))


@pytest.mark.parametrize("skew", [-299, 299])
def test_a_clock_less_than_five_minutes_off_is_accepted(skew: int) -> None:
    assert verifier().verify(sign(at=NOW + timedelta(seconds=skew)))


def test_a_key_made_for_another_service_is_refused() -> None:
    with pytest.raises(errors.InvalidSignature, match="Credential should be scoped to correct service: 'lambda'"):
        verifier().verify(sign(service="s3"))


def test_the_region_is_the_scopes_own() -> None:
    assert verifier().verify(sign(region="eu-west-1")).region == "eu-west-1"


@pytest.mark.parametrize(("old", "new", "text"), [
    ("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256", "Unsupported AWS 'algorithm'"),
    ("SignedHeaders=", "Signed=", "Authorization header requires 'SignedHeaders' parameter."),
    ("Signature=", "Sig=", "Authorization header requires 'Signature' parameter."),
    ("Credential=", "Key=", "Authorization header requires 'Credential' parameter."),
    ("/aws4_request", "", "Credential must have exactly 5 slash-delimited elements"),
    ("SignedHeaders=host;", "SignedHeaders=", "'Host' or ':authority' must be a 'SignedHeader'"),
    ("/20260301/", "/20260302/", "Date in Credential scope does not match"),
])
def test_a_malformed_header_says_what_is_wrong(old: str, new: str, text: str) -> None:
    request = sign()
    header = request.headers["authorization"].replace(old, new)
    with pytest.raises((errors.IncompleteSignature, errors.InvalidSignature), match=text):
        verifier().verify(with_headers(request, authorization=header))


def test_a_header_without_a_date_says_so() -> None:
    with pytest.raises(errors.IncompleteSignature, match="either a 'X-Amz-Date' or a 'Date' header"):
        verifier().verify(with_headers(sign(), x_amz_date=None))


def test_an_unsigned_payload_is_accepted_when_the_signature_says_unsigned() -> None:
    request = sign_by_hand("UNSIGNED-PAYLOAD", b'{"a":1}')
    assert verifier().verify(request).body == b'{"a":1}'


def test_a_digest_that_is_not_the_bodys_does_not_match() -> None:
    with pytest.raises(errors.SignatureMismatch):
        verifier().verify(sign_by_hand(hashlib.sha256(b"x").hexdigest(), b"y"))


def test_signed_chunks_are_put_together() -> None:
    framed = chunks_of(b"hello ", b"world", seed_of(chunked.SIGNED))
    assert verifier().verify(sign_by_hand(chunked.SIGNED, framed)).body == b"hello world"


def test_a_changed_chunk_does_not_match() -> None:
    framed = chunks_of(b"hello ", b"world", seed_of(chunked.SIGNED)).replace(b"world", b"w0rld")
    with pytest.raises(errors.SignatureMismatch):
        verifier().verify(sign_by_hand(chunked.SIGNED, framed))


def test_unsigned_chunks_with_a_trailer_are_put_together() -> None:
    framed = b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"
    assert verifier().verify(sign_by_hand(chunked.UNSIGNED_TRAILER, framed)).body == b"hello"


def test_a_signed_trailer_is_checked() -> None:
    kind = chunked.SIGNED_TRAILER
    seed = seed_of(kind)
    framed, seed = chunks_and_seed((b"hello", b""), seed)
    covered = b"x-amz-checksum-crc32:AAAAAA==\n"
    trailer = seed.sign("TRAILER", hashlib.sha256(covered).hexdigest())
    whole = framed + b"x-amz-checksum-crc32:AAAAAA==\r\nx-amz-trailer-signature:" + trailer.encode() + b"\r\n\r\n"
    assert verifier().verify(sign_by_hand(kind, whole)).body == b"hello"
    with pytest.raises(errors.SignatureMismatch):
        verifier().verify(sign_by_hand(kind, whole.replace(b"AAAAAA", b"BBBBBB")))


@given(st.binary(max_size=200))
def test_broken_framing_is_unreadable_or_does_not_match(body: bytes) -> None:
    with pytest.raises((errors.Unreadable, errors.SignatureMismatch)):
        chunked.decode(body, seed_of(chunked.SIGNED), chunked.SIGNED)


@given(st.text(max_size=80), st.text(max_size=40), st.text(max_size=40))
def test_no_header_text_is_more_than_a_refusal(authorization: str, date: str, query: str) -> None:
    request = Request("GET", "/", query, {"host": "h", "authorization": authorization, "x-amz-date": date}, b"")
    with pytest.raises(errors.WireError):
        verifier().verify(request)


@given(st.text(max_size=40), st.dictionaries(st.sampled_from(
    ["Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature", "Security-Token"]),
    st.text(max_size=30)))
def test_no_query_text_is_more_than_a_refusal(path: str, parameters: dict[str, str]) -> None:
    query = "&".join(f"X-Amz-{name}={value}" for name, value in parameters.items())
    with pytest.raises(errors.WireError):
        verifier().verify(Request("GET", f"/{path}", query, {"host": "h"}, b""))


def test_the_secret_is_in_no_text_form() -> None:
    assert KEY.secret not in repr(verifier().verify(sign()))


STAMP = "20260301T120000Z"
SCOPE = "20260301/us-east-1/lambda/aws4_request"


def signing_key() -> bytes:
    key = f"AWS4{KEY.secret}".encode()
    for part in SCOPE.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def seed_of(payload: str) -> chunked.Seed:
    return chunked.Seed(signing_key(), STAMP, SCOPE, signature_of(payload))


def signature_of(payload: str) -> str:
    canonical = (f"POST\n/p\n\nhost:h\nx-amz-content-sha256:{payload}\nx-amz-date:{STAMP}\n\n"
                 f"host;x-amz-content-sha256;x-amz-date\n{payload}")
    text = f"AWS4-HMAC-SHA256\n{STAMP}\n{SCOPE}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    return hmac.digest(signing_key(), text.encode(), "sha256").hex()


def sign_by_hand(payload: str, body: bytes) -> Request:
    header = (f"AWS4-HMAC-SHA256 Credential={KEY.access_key_id}/{SCOPE}, "
              f"SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature={signature_of(payload)}")
    return Request("POST", "/p", "", {"host": "h", "x-amz-date": STAMP, "x-amz-content-sha256": payload,
                                      "authorization": header}, body)


def chunks_and_seed(parts: tuple[bytes, ...], seed: chunked.Seed) -> tuple[bytes, chunked.Seed]:
    framed = b""
    for part in parts:
        signature = seed.sign("PAYLOAD", hashlib.sha256(b"").hexdigest(), hashlib.sha256(part).hexdigest())
        framed += b"%x;chunk-signature=%s\r\n" % (len(part), signature.encode())
        framed += part + b"\r\n" if part else b""
        seed = seed.next(signature)
    return framed, seed


def chunks_of(first: bytes, second: bytes, seed: chunked.Seed) -> bytes:
    return chunks_and_seed((first, second, b""), seed)[0] + b"\r\n"
