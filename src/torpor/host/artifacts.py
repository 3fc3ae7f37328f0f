"""Fetches code artifacts from S3: the embedded endpoint or any other, by configuration."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import Any, Final, Protocol

import boto3
from botocore.config import Config as ClientConfig
from botocore.exceptions import BotoCoreError, ClientError

from torpor.model.errors import ArtifactUnavailable

_URI: Final = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(?P<key>.{1,1024})", re.DOTALL)
_READ_BYTES: Final = 1024 * 1024
CONNECT_TIMEOUT: Final = 5
READ_TIMEOUT: Final = 30
_REASONS: Final = {
    "AccessDenied": "S3_ACCESS_DENIED", "403": "S3_ACCESS_DENIED", "InvalidAccessKeyId": "S3_ACCESS_DENIED",
    "SignatureDoesNotMatch": "S3_ACCESS_DENIED", "NoSuchKey": "S3_NO_SUCH_KEY", "404": "S3_NO_SUCH_KEY",
    "NoSuchBucket": "S3_NO_SUCH_BUCKET", "InvalidObjectState": "S3_INVALID_OBJECT",
    "PermanentRedirect": "S3_CROSS_REGION_ACCESS_DENIED", "AuthorizationHeaderMalformed":
    "S3_CROSS_REGION_ACCESS_DENIED",
}


class KeyPair(Protocol):
    """What signs requests; `session_token` is None for a lasting key."""

    @property
    def access_key_id(self) -> str: ...

    @property
    def secret(self) -> str: ...


class S3Artifacts:
    """Reads objects with one key pair; without one, with what boto3 finds in the environment or ~/.aws."""

    def __init__(self, endpoint_url: str | None, region: str, key: KeyPair | None = None,
                 ca_file: str | None = None) -> None:
        self._endpoint_url = endpoint_url
        self._region = region
        self._key = key
        self._ca_file = ca_file
        self._client: Any = None

    async def fetch(self, uri: str, max_bytes: int) -> bytes:
        """The object's bytes.

        Raises:
            ArtifactUnavailable: the message begins with AWS's code for the reason (spec 2.4).
        """
        bucket, key = parse_uri(uri)
        return await asyncio.to_thread(self._fetch, uri, bucket, key, max_bytes)

    def _fetch(self, uri: str, bucket: str, key: str, max_bytes: int) -> bytes:
        try:
            answer = self._connected().get_object(Bucket=bucket, Key=key)
            with contextlib.closing(answer["Body"]) as body:
                if answer["ContentLength"] > max_bytes:
                    raise ArtifactUnavailable(
                        f"S3_INVALID_OBJECT: {uri} has {answer['ContentLength']} bytes, more than {max_bytes}")
                return b"".join(body.iter_chunks(_READ_BYTES))
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            reason = _REASONS.get(code, "INTERNAL_PLATFORM_ERROR")
            raise ArtifactUnavailable(f"{reason}: {uri} cannot be read ({code or 'no code'})") from error
        except (BotoCoreError, OSError) as error:
            raise ArtifactUnavailable(
                f"INTERNAL_PLATFORM_ERROR: {uri} cannot be read ({type(error).__name__})") from error

    def _connected(self) -> Any:
        if self._client is None:
            keys = {} if self._key is None else {
                "aws_access_key_id": self._key.access_key_id, "aws_secret_access_key": self._key.secret,
            }
            config = ClientConfig(connect_timeout=CONNECT_TIMEOUT, read_timeout=READ_TIMEOUT,
                                  retries={"max_attempts": 3, "mode": "standard"}, s3={"addressing_style": "path"}
                                  if self._endpoint_url else {})
            self._client = boto3.session.Session().client(
                "s3", endpoint_url=self._endpoint_url, region_name=self._region, verify=self._ca_file, config=config,
                **keys)
        return self._client


def parse_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`. Raises ArtifactUnavailable."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise ArtifactUnavailable(f"S3_INVALID_OBJECT: {uri[:200]!r} is not of the form s3://bucket/key")
    return match["bucket"], match["key"]
