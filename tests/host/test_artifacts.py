"""Why a code artifact could not be fetched, in AWS's codes (spec 2.4)."""

from __future__ import annotations

import io
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from botocore.response import StreamingBody

from torpor.host.artifacts import S3Artifacts, parse_uri
from torpor.model.errors import ArtifactUnavailable


class Client:
    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def get_object(self, **asked: str) -> Any:
        self.asked = asked
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


def artifacts(answer: Any) -> S3Artifacts:
    made = S3Artifacts("http://127.0.0.1:1", "us-east-1")
    made._client = Client(answer)
    return made


def refusal(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "secret detail"}}, "GetObject")


async def test_an_object_is_read() -> None:
    body = StreamingBody(io.BytesIO(b"zip"), 3)
    assert await artifacts({"Body": body, "ContentLength": 3}).fetch("s3://bucket/a/b.zip", 10) == b"zip"


async def test_a_large_object_is_not_read() -> None:
    body = StreamingBody(io.BytesIO(b"zip"), 3)
    with pytest.raises(ArtifactUnavailable, match=r"^S3_INVALID_OBJECT.*more than 2"):
        await artifacts({"Body": body, "ContentLength": 3}).fetch("s3://bucket/key", 2)


@pytest.mark.parametrize(("code", "reason"), [
    ("AccessDenied", "S3_ACCESS_DENIED"), ("NoSuchKey", "S3_NO_SUCH_KEY"), ("NoSuchBucket", "S3_NO_SUCH_BUCKET"),
    ("InvalidObjectState", "S3_INVALID_OBJECT"), ("SlowDown", "INTERNAL_PLATFORM_ERROR"),
])
async def test_refusals_carry_the_code_of_aws(code: str, reason: str) -> None:
    with pytest.raises(ArtifactUnavailable, match=f"^{reason}: ") as failure:
        await artifacts(refusal(code)).fetch("s3://bucket/key", 10)
    assert "secret detail" not in str(failure.value)


async def test_an_absent_endpoint_is_a_reason() -> None:
    with pytest.raises(ArtifactUnavailable, match=r"^INTERNAL_PLATFORM_ERROR"):
        await artifacts(EndpointConnectionError(endpoint_url="http://x")).fetch("s3://bucket/key", 10)


def test_uris_are_taken_apart() -> None:
    assert parse_uri("s3://my-bucket/a/b c.zip") == ("my-bucket", "a/b c.zip")


@pytest.mark.parametrize("uri", ["", "s3://bucket", "s3://bucket/", "https://bucket/key", "s3://B/key", "s3:///key"])
def test_what_is_no_s3_uri_is_refused(uri: str) -> None:
    with pytest.raises(ArtifactUnavailable, match=r"^S3_INVALID_OBJECT"):
        parse_uri(uri)
