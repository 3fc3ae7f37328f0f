"""The embedded S3 with the client everybody uses."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config as BotoConfig
from botocore.exceptions import ClientError

from support.edge_world import free_port, make_credential
from torpor.config import Config, S3Settings
from torpor.edge.s3 import EmbeddedS3
from torpor.model.errors import SetupFailed

CREDENTIAL = make_credential("AKIDTEST", 'se"cret/+with-odd=characters')


@pytest.fixture
async def s3(tmp_path: Path) -> AsyncIterator[EmbeddedS3]:
    async with EmbeddedS3(Config(s3=S3Settings(port=free_port())), CREDENTIAL, tmp_path) as running:
        yield running


def client(s3: EmbeddedS3, key: str = CREDENTIAL.access_key_id, secret: str = CREDENTIAL.secret,
           region: str = "us-east-1") -> Any:
    return boto3.client("s3", endpoint_url=s3.url, aws_access_key_id=key, aws_secret_access_key=secret,
                        region_name=region, config=BotoConfig(s3={"addressing_style": "path"}, retries={
                            "total_max_attempts": 1}))


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1"])
async def test_objects_are_put_listed_read_and_deleted(s3: EmbeddedS3, tmp_path: Path, region: str) -> None:
    def talk() -> None:
        with_key = client(s3, region=region)
        assert with_key.list_buckets()["Buckets"] == []
        place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        with_key.create_bucket(Bucket="artifacts", **place)
        with_key.put_object(Bucket="artifacts", Key="app/code.zip", Body=b"PK" * 1000)
        assert (tmp_path / "s3/artifacts/app/code.zip").read_bytes() == b"PK" * 1000
        assert with_key.get_object(Bucket="artifacts", Key="app/code.zip")["Body"].read() == b"PK" * 1000
        assert with_key.head_object(Bucket="artifacts", Key="app/code.zip")["ContentLength"] == 2000
        listed = with_key.list_objects_v2(Bucket="artifacts", Prefix="app/")
        assert [entry["Key"] for entry in listed["Contents"]] == ["app/code.zip"]
        with_key.delete_object(Bucket="artifacts", Key="app/code.zip")
        assert "Contents" not in with_key.list_objects_v2(Bucket="artifacts")
        assert [bucket["Name"] for bucket in with_key.list_buckets()["Buckets"]] == ["artifacts"]

    await asyncio.to_thread(talk)


async def test_large_objects_go_in_parts(s3: EmbeddedS3) -> None:
    data = os.urandom(1 << 20) * 20

    def talk() -> bytes:
        with_key = client(s3)
        with_key.create_bucket(Bucket="artifacts")
        with_key.upload_fileobj(io.BytesIO(data), "artifacts", "big.zip",
                                Config=TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20))
        read: bytes = with_key.get_object(Bucket="artifacts", Key="big.zip")["Body"].read()
        return read

    assert await asyncio.to_thread(talk) == data


@pytest.mark.parametrize(("key", "secret", "code"), [
    (CREDENTIAL.access_key_id, "wrong", "SignatureDoesNotMatch"),
    ("AKIDOTHER", CREDENTIAL.secret, "InvalidAccessKeyId"),
])
async def test_a_wrong_key_is_refused(s3: EmbeddedS3, key: str, secret: str, code: str) -> None:
    with pytest.raises(ClientError) as failure:
        await asyncio.to_thread(client(s3, key, secret).create_bucket, Bucket="stolen")
    assert failure.value.response["Error"]["Code"] == code
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.put(f"{s3.url}/anonymous")).status_code == 400


async def test_what_is_missing_is_said_as_s3_does(s3: EmbeddedS3) -> None:
    with pytest.raises(ClientError) as failure:
        await asyncio.to_thread(client(s3).get_object, Bucket="none", Key="x")
    assert failure.value.response["Error"]["Code"] == "NoSuchBucket"
    await asyncio.to_thread(client(s3).create_bucket, Bucket="some")
    with pytest.raises(ClientError) as failure:
        await asyncio.to_thread(client(s3).get_object, Bucket="some", Key="x")
    assert failure.value.response["Error"]["Code"] == "NoSuchKey"


async def test_the_secret_is_not_in_the_argument_list(s3: EmbeddedS3, tmp_path: Path) -> None:
    arguments = Path(f"/proc/{s3.pid}/cmdline").read_bytes()
    assert b"rclone" in arguments
    assert CREDENTIAL.secret.encode() not in arguments
    assert CREDENTIAL.access_key_id.encode() not in arguments
    assert CREDENTIAL.secret not in (tmp_path / "logs/s3.log").read_text()


async def test_it_is_started_again_when_it_dies_and_keeps_its_objects(s3: EmbeddedS3) -> None:
    await asyncio.to_thread(client(s3).create_bucket, Bucket="kept")
    killed = s3.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    async with asyncio.timeout(10):
        while s3.pid in (None, killed):
            await asyncio.sleep(0.02)
        while True:
            try:
                listed = await asyncio.to_thread(client(s3).list_buckets)
                break
            except Exception:
                await asyncio.sleep(0.05)
    assert [bucket["Name"] for bucket in listed["Buckets"]] == ["kept"]


async def test_a_taken_port_is_said(s3: EmbeddedS3, tmp_path: Path) -> None:
    second = EmbeddedS3(Config(s3=S3Settings(port=int(s3.url.rpartition(":")[2]))), CREDENTIAL, tmp_path / "second")
    with pytest.raises(SetupFailed, match="Address already in use"):
        await second.start()
    assert second.pid is None
