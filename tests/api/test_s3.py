"""The embedded S3 with the client everybody uses, with Torpor's own keys and policies (spec 13)."""

from __future__ import annotations

import asyncio
import io
import os
import zlib
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from support.edge_world import make_credential
from support.s3_wire import exchange, framed, head_and_seed, signed_for_s3
from support.s3_world import ACCOUNT, OTHER, S3World, allow, memory_mib, s3_world
from torpor.api import chunked
from torpor.api.s3 import asked
from torpor.api.s3.errors import S3Error
from torpor.control.buckets import Buckets
from torpor.model.account import root_arn
from torpor.model.errors import ArtifactUnavailable


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[S3World]:
    async with s3_world(tmp_path) as made:
        yield made


async def done(call: Callable[..., Any], **parameters: Any) -> Any:
    """A boto3 call, beside the server's loop."""
    return await asyncio.to_thread(call, **parameters)


async def body_of(client: Any, **parameters: Any) -> bytes:
    return await asyncio.to_thread(lambda: client.get_object(**parameters)["Body"].read())


async def refused(call: Callable[..., Any], **parameters: Any) -> tuple[str, int, str]:
    """Code, status and text of a call that must fail."""
    with pytest.raises(ClientError) as failure:
        await asyncio.to_thread(call, **parameters)
    answer = failure.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"].get("Message", "")


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1"])
async def test_objects_are_put_listed_read_and_deleted(world: S3World, region: str) -> None:
    client = world.client(region=region)
    assert (await done(client.list_buckets))["Buckets"] == []
    place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    await done(client.create_bucket, Bucket="artifacts", **place)
    key = "app/a b+c&d=é%2F(1).zip"
    await done(client.put_object, Bucket="artifacts", Key=key, Body=b"PK" * 1000)
    assert (world.objects / "artifacts" / key).read_bytes() == b"PK" * 1000
    assert await body_of(client, Bucket="artifacts", Key=key) == b"PK" * 1000
    assert await body_of(client, Bucket="artifacts", Key=key, Range="bytes=1-2") == b"KP"
    assert (await done(client.head_object, Bucket="artifacts", Key=key))["ContentLength"] == 2000
    listed = await done(client.list_objects_v2, Bucket="artifacts", Prefix="app/")
    assert [entry["Key"] for entry in listed["Contents"]] == [key]
    await done(client.copy_object, Bucket="artifacts", Key="copy", CopySource={"Bucket": "artifacts", "Key": key})
    gone = await done(client.delete_objects, Bucket="artifacts", Delete={"Objects": [{"Key": key}, {"Key": "copy"}]})
    assert [entry["Key"] for entry in gone["Deleted"]] == [key, "copy"]
    await done(client.delete_object, Bucket="artifacts", Key="nothing")
    assert "Contents" not in await done(client.list_objects_v2, Bucket="artifacts")
    assert [bucket["Name"] for bucket in (await done(client.list_buckets))["Buckets"]] == ["artifacts"]
    await done(client.head_bucket, Bucket="artifacts")
    await done(client.get_bucket_location, Bucket="artifacts")
    await done(client.delete_bucket, Bucket="artifacts")
    assert (await done(client.list_buckets))["Buckets"] == []


async def test_large_objects_go_in_parts(world: S3World) -> None:
    data = os.urandom(1 << 20) * 20
    client = world.client()
    await done(client.create_bucket, Bucket="artifacts")
    parts = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20)
    await done(client.upload_fileobj, Fileobj=io.BytesIO(data), Bucket="artifacts", Key="big", Config=parts)
    assert await body_of(client, Bucket="artifacts", Key="big") == data
    begun = (await done(client.create_multipart_upload, Bucket="artifacts", Key="never"))["UploadId"]
    await done(client.upload_part, Bucket="artifacts", Key="never", UploadId=begun, PartNumber=1, Body=b"x")
    assert len((await done(client.list_parts, Bucket="artifacts", Key="never", UploadId=begun))["Parts"]) == 1
    await done(client.abort_multipart_upload, Bucket="artifacts", Key="never", UploadId=begun)


async def test_what_is_missing_is_said_as_s3_does(world: S3World) -> None:
    client = world.client()
    assert (await refused(client.get_object, Bucket="none", Key="x"))[:2] == ("NoSuchBucket", 404)
    await done(client.create_bucket, Bucket="some")
    assert (await refused(client.get_object, Bucket="some", Key="x"))[:2] == ("NoSuchKey", 404)
    assert (await refused(client.head_object, Bucket="some", Key="x"))[:2] == ("404", 404)
    assert (await refused(client.get_bucket_policy, Bucket="some"))[:2] == ("NotImplemented", 501)
    assert (await refused(client.get_object, Bucket="some", Key="x", VersionId="7"))[:2] == ("NotImplemented", 501)
    assert (await refused(client.head_object, Bucket="some", Key="folder/"))[:2] == ("404", 404)
    assert (await refused(client.put_object, Bucket="some", Key="folder/"))[:2] == ("InvalidArgument", 400)
    begun = (await done(client.create_multipart_upload, Bucket="some", Key="x"))["UploadId"]
    part = {"Bucket": "some", "Key": "x", "UploadId": begun, "PartNumber": 1, "CopySource": "some/y"}
    assert (await refused(client.upload_part_copy, **part))[:2] == ("NotImplemented", 501)


async def test_a_wrong_key_or_none_is_refused(world: S3World) -> None:
    wrong = make_credential(world.root.access_key_id, "wrong")
    assert (await refused(world.client(wrong).create_bucket, Bucket="stolen"))[:2] == ("SignatureDoesNotMatch", 403)
    unknown = make_credential("AKIAUNKNOWN", world.root.secret)
    assert (await refused(world.client(unknown).create_bucket, Bucket="stolen"))[:2] == ("InvalidAccessKeyId", 403)
    with patch("botocore.auth.get_current_datetime", lambda **_: datetime.now(UTC) - timedelta(minutes=16)):
        assert (await refused(world.client().list_buckets))[:2] == ("RequestTimeTooSkewed", 403)
    async with httpx.AsyncClient(trust_env=False) as http:
        for method, path in (("PUT", "/anonymous"), ("GET", "/"), ("GET", "/?x=1"), ("OPTIONS", "/anonymous")):
            answer = await http.request(method, world.url + path)
            assert (answer.status_code, "<Code>AccessDenied</Code>" in answer.text) == (403, True)
    assert (await done(world.client().list_buckets))["Buckets"] == []


async def test_a_role_does_what_its_policies_allow_and_nothing_else(world: S3World) -> None:
    root = world.client()
    for bucket in ("data", "secret"):
        await done(root.create_bucket, Bucket=bucket)
        await done(root.put_object, Bucket=bucket, Key="in/x", Body=b"x")
    key = await world.role(
        allow("s3:GetObject", on="arn:aws:s3:::data/in/*"), allow("s3:PutObject", on="arn:aws:s3:::data/out/*"),
        allow("s3:ListBucket", on="arn:aws:s3:::data", Condition={"StringLike": {"s3:prefix": "in/*"}}))
    role = world.client(key)
    assert await body_of(role, Bucket="data", Key="in/x") == b"x"
    await done(role.put_object, Bucket="data", Key="out/y", Body=b"y")
    assert len((await done(role.list_objects_v2, Bucket="data", Prefix="in/"))["Contents"]) == 1
    code, status, text = await refused(role.put_object, Bucket="data", Key="in/x", Body=b"z")
    assert (code, status) == ("AccessDenied", 403)
    assert text == (f"User: arn:aws:sts::{ACCOUNT}:assumed-role/worker/microvm-1 is not authorized to perform: "
                    "s3:PutObject on resource: arn:aws:s3:::data/in/x because no identity-based policy allows the "
                    "s3:PutObject action")
    for call, parameters in (
        (role.get_object, {"Bucket": "secret", "Key": "in/x"}), (role.head_object, {"Bucket": "data", "Key": "out/y"}),
        (role.delete_object, {"Bucket": "data", "Key": "out/y"}), (role.list_objects_v2, {"Bucket": "data"}),
        (role.list_objects_v2, {"Bucket": "data", "Prefix": "out/"}), (role.head_bucket, {"Bucket": "data"}),
        (role.list_buckets, {}), (role.create_bucket, {"Bucket": "more"}), (role.delete_bucket, {"Bucket": "data"}),
        (role.get_bucket_location, {"Bucket": "data"}),
        (role.create_multipart_upload, {"Bucket": "data", "Key": "in/x"}),
        (role.copy_object, {"Bucket": "data", "Key": "out/z", "CopySource": "secret/in/x"}),
        (role.copy_object, {"Bucket": "data", "Key": "in/z", "CopySource": "data/in/x"}),
    ):
        assert (await refused(call, **parameters))[1] == 403, parameters
    assert sorted(path.name for path in world.objects.rglob("*") if path.is_file()) == ["x", "x", "y"]
    await done(role.copy_object, Bucket="data", Key="out/z", CopySource="data/in/x")


async def test_a_role_that_may_not_list_does_not_learn_what_is_missing(world: S3World) -> None:
    await done(world.client().create_bucket, Bucket="data")
    role = world.client(await world.role(allow("s3:GetObject")))
    assert (await refused(role.get_object, Bucket="data", Key="none"))[:2] == ("AccessDenied", 403)


async def test_of_many_objects_those_that_may_be_are_deleted(world: S3World) -> None:
    root = world.client()
    await done(root.create_bucket, Bucket="data")
    for key in ("in/x", "out/<&>"):
        await done(root.put_object, Bucket="data", Key=key, Body=b"x")
    role = world.client(await world.role(allow("s3:DeleteObject", on="arn:aws:s3:::data/out/*")))
    told = await done(role.delete_objects, Bucket="data", Delete={"Objects": [
        {"Key": "in/x"}, {"Key": "out/<&>"}, {"Key": "out/../in/x"}]})
    assert [entry["Key"] for entry in told["Deleted"]] == ["out/<&>"]
    assert [(entry["Key"], entry["Code"]) for entry in told["Errors"]] == [
        ("in/x", "AccessDenied"), ("out/../in/x", "InvalidArgument")]
    told = await done(role.delete_objects, Bucket="data", Delete={"Objects": [{"Key": "in/x"}], "Quiet": True})
    assert ("Deleted" in told, len(told["Errors"])) == (False, 1)


@pytest.mark.parametrize("path", [
    "/data/open/../secret", "/data/open/%2e%2e/secret", "/data/open%2F..%2Fsecret", "/data//secret", "/data/./secret",
    "/data/secret/", "//data/secret", "/other/../data/secret", "/data/open?uploadId=", "/data?prefix=../data/",
    "/data?prefix=open/../", "/../data/secret",
])
async def test_no_spelling_of_a_path_gets_around_a_policy(world: S3World, path: str) -> None:
    root = world.client()
    for bucket in ("data", "other"):
        await done(root.create_bucket, Bucket=bucket)
    await done(root.put_object, Bucket="data", Key="secret", Body=b"secret")
    await done(root.put_object, Bucket="data", Key="open/x", Body=b"open")
    denied = {"Effect": "Deny", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::data/secret"}
    key = await world.role(allow("s3:*"), denied)
    status, text = await by_hand(world, key, "GET", path)
    assert (status // 100, "secret</Key>" in text, text == "secret") == (4, False, False)


async def test_a_session_needs_its_token_and_ends(world: S3World) -> None:
    key = await world.role(allow("s3:*"))
    assert (await done(world.client(key).list_buckets))["Buckets"] == []
    bare = make_credential(key.access_key_id, key.secret)
    assert (await refused(world.client(bare).list_buckets))[:2] == ("InvalidToken", 400)
    await world.clock.advance(timedelta(hours=1))
    assert (await refused(world.client(key).list_buckets))[:2] == ("ExpiredToken", 400)
    await world.clock.advance(timedelta(days=2))
    await world.role(allow("s3:*"))
    assert (await refused(world.client(key).list_buckets))[:2] == ("InvalidAccessKeyId", 403)


async def test_a_writers_token_is_not_kept_with_the_object(world: S3World) -> None:
    await done(world.client().create_bucket, Bucket="data")
    key = await world.role(allow("s3:*"))
    await done(world.client(key).put_object, Bucket="data", Key="x", Body=b"x", Metadata={"mine": "1"})
    answer = await done(world.client().get_object, Bucket="data", Key="x")
    assert answer["Metadata"] == {"mine": "1"}
    assert {"x-amz-security-token", "x-amz-content-sha256", "x-amz-date"}.isdisjoint(
        answer["ResponseMetadata"]["HTTPHeaders"])
    assert key.session_token is not None
    assert key.session_token not in str(answer["ResponseMetadata"])


async def test_accounts_have_their_own_buckets(world: S3World) -> None:
    other = world.client(await world.accounts.create_key(root_arn(OTHER)))
    mine = world.client()
    await done(mine.create_bucket, Bucket="mine")
    await done(mine.put_object, Bucket="mine", Key="x", Body=b"x")
    await done(other.create_bucket, Bucket="theirs")
    (world.objects / "by-hand").mkdir()
    await done(other.put_object, Bucket="theirs", Key="x", Body=b"x")
    for client, own, foreign in ((mine, ["by-hand", "mine"], "theirs"), (other, ["theirs"], "mine")):
        await eventually_listed(client, own)
        for call, parameters in ((client.get_object, {"Key": "x"}), (client.put_object, {"Key": "y", "Body": b"y"}),
                                 (client.list_objects_v2, {}), (client.delete_bucket, {}), (client.head_bucket, {}),
                                 (client.delete_objects, {"Delete": {"Objects": [{"Key": "x"}]}})):
            assert (await refused(call, Bucket=foreign, **parameters))[1] == 403
        assert (await refused(client.create_bucket, Bucket=foreign))[:2] == ("BucketAlreadyExists", 409)
        stolen = {"Bucket": own[-1], "Key": "z", "CopySource": f"{foreign}/x"}
        assert (await refused(client.copy_object, **stolen))[1] == 403
    await done(other.delete_object, Bucket="theirs", Key="x")
    await done(other.delete_bucket, Bucket="theirs")
    await done(mine.create_bucket, Bucket="theirs")
    await eventually_listed(mine, ["by-hand", "mine", "theirs"])


async def eventually_listed(client: Any, names: list[str]) -> None:
    async with asyncio.timeout(10):
        while [bucket["Name"] for bucket in (await done(client.list_buckets))["Buckets"]] != names:
            await asyncio.sleep(0.1)


async def test_code_is_not_built_from_a_bucket_of_another_account(world: S3World) -> None:
    other = world.client(await world.accounts.create_key(root_arn(OTHER)))
    await done(other.create_bucket, Bucket="theirs")
    world.buckets.check_artifact("s3://theirs/code.zip", OTHER)
    world.buckets.check_artifact("s3://none/code.zip", ACCOUNT)
    with pytest.raises(ArtifactUnavailable, match="S3_ACCESS_DENIED"):
        world.buckets.check_artifact("s3://theirs/code.zip", ACCOUNT)
    again = Buckets(world.config, world.database)
    await again.start()
    assert again.owner("theirs") == OTHER


async def test_presigned_urls_work_until_they_expire(world: S3World) -> None:
    client = world.client(await world.role(allow("s3:GetObject", "s3:PutObject")))
    await done(world.client().create_bucket, Bucket="data")
    async with httpx.AsyncClient(trust_env=False) as http:
        put = client.generate_presigned_url("put_object", {"Bucket": "data", "Key": "a b"}, ExpiresIn=60)
        assert (await http.put(put, content=b"hello")).status_code == 200
        get = client.generate_presigned_url("get_object", {
            "Bucket": "data", "Key": "a b", "ResponseContentType": "text/x-mine"}, ExpiresIn=60)
        answer = await http.get(get)
        assert (answer.text, answer.headers["content-type"]) == ("hello", "text/x-mine")
        assert "<Code>SignatureDoesNotMatch</Code>" in (await http.get(get.replace("x-mine", "html"))).text
        assert (await http.put(put, content=b"x", headers={"x-amz-copy-source": "data/other"})).status_code == 403
        with patch("botocore.auth.get_current_datetime", lambda **_: datetime.now(UTC) - timedelta(seconds=70)):
            late = client.generate_presigned_url("get_object", {"Bucket": "data", "Key": "a b"}, ExpiresIn=60)
        answer = await http.get(late)
        assert (answer.status_code, "Request has expired" in answer.text) == (403, True)


async def test_an_upload_that_is_not_what_was_signed_changes_nothing(world: S3World) -> None:
    client = world.client()
    await done(client.create_bucket, Bucket="data")
    await done(client.put_object, Bucket="data", Key="x", Body=b"old")
    data = os.urandom(300_000)
    url = client.generate_presigned_url("put_object", {"Bucket": "data", "Key": "x"})
    for headers, body, code in (
        ({"x-amz-content-sha256": "0" * 64}, data, "XAmzContentSHA256Mismatch"),
        ({"x-amz-checksum-crc32": "AAAAAA==", "x-amz-content-sha256": "UNSIGNED-PAYLOAD"}, data, "BadDigest"),
    ):
        status, text = await by_hand(world, world.root, "PUT", "/data/x", body, headers)
        assert (status, f"<Code>{code}</Code>" in text) == (400, True), text
    async with httpx.AsyncClient(trust_env=False) as http:
        with pytest.raises(httpx.TransportError):  # breaks off in the middle
            await http.put(url, content=broken_off(data), headers={"content-length": str(2 * len(data))})
    assert await body_of(client, Bucket="data", Key="x") == b"old"
    assert [path.name for path in (world.objects / "data").iterdir() if not path.name.startswith(".")] == ["x"]


@pytest.mark.parametrize("kind", sorted(chunked.KINDS))
async def test_chunked_uploads_are_put_together_and_checked(world: S3World, kind: str) -> None:
    await done(world.client().create_bucket, Bucket="data")
    parts = [os.urandom(200_000), b"end"]
    whole = b"".join(parts)
    sum_name, right = "x-amz-checksum-crc32", b64encode(zlib.crc32(whole).to_bytes(4, "big")).decode()
    headers = {"x-amz-content-sha256": kind, "x-amz-decoded-content-length": str(len(whole)),
               "content-encoding": "aws-chunked", **({"x-amz-trailer": sum_name} if "TRAILER" in kind else {})}

    async def put(key: str, given: list[bytes], checksum: str, **changes: str) -> tuple[int, str]:
        # The length of the framing is not known before the seed of its signatures is: it is not signed.
        head, seed = head_and_seed(world.url, world.root, "PUT", f"/data/{key}", {**headers, **changes})
        trailer = {sum_name: checksum} if "TRAILER" in kind else None
        body = framed(given, None if kind == chunked.UNSIGNED_TRAILER else seed, trailer)
        if key == "forged":
            body = body.replace(b"end", b"END")
        return await exchange(world.url, ("PUT", f"/data/{key}", {**head, "content-length": str(len(body))}), body)

    assert (await put("good", parts, right))[0] == 200
    assert await body_of(world.client(), Bucket="data", Key="good") == whole
    assert "ContentEncoding" not in await done(world.client().head_object, Bucket="data", Key="good")
    status, text = await put("forged", parts, right)
    assert (status, "SignatureDoesNotMatch" in text or "BadDigest" in text) == (
        400 if kind == chunked.UNSIGNED_TRAILER else 403, True)
    assert (await put("short", parts[:1], right))[0] == 400
    if "TRAILER" in kind:
        status, text = await put("sum", parts, "AAAAAA==")
        assert (status, "<Code>BadDigest</Code>" in text) == (400, True)
    assert [path.name for path in (world.objects / "data").iterdir() if not path.name.startswith(".")] == ["good"]


async def broken_off(data: bytes) -> AsyncIterator[bytes]:
    yield data
    raise httpx.WriteError("the client goes away")


async def test_a_large_object_passes_without_being_held(world: S3World) -> None:
    pieces, piece = 256, bytes(1 << 20)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(pieces):
            yield piece

    client = world.client()
    await done(client.create_bucket, Bucket="data")
    before = memory_mib(os.getpid())
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        url = client.generate_presigned_url("put_object", {"Bucket": "data", "Key": "x"})
        answer = await http.put(url, content=body(), headers={"content-length": str(pieces << 20)})
        assert answer.status_code == 200, answer.text
        read = 0
        async with http.stream("GET", client.generate_presigned_url("get_object", {
                "Bucket": "data", "Key": "x"})) as answer:
            async for part in answer.aiter_bytes():
                read += len(part)
    assert read == pieces << 20
    assert memory_mib(os.getpid()) - before < 64


async def by_hand(world: S3World, key: Any, method: str, path: str, body: bytes = b"",
                  headers: dict[str, str] | None = None) -> tuple[int, str]:
    """A request with its path as it is written here."""
    return await exchange(world.url, signed_for_s3(world.url, key, method, path, body, headers or {}), body)


@given(st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD", "PATCH"]), st.text(max_size=30),
       st.text(alphabet="prefixuploadId&=?./%2e", max_size=30))
def test_any_path_and_query_is_understood_or_refused(method: str, path: str, query: str) -> None:
    try:
        found = asked.read(method, f"/{path}".encode("utf-8", "replace").decode("latin-1"), query)
    except S3Error:
        return
    sent = found.target.decode("ascii").partition("?")[0].removeprefix("/")
    assert bool(sent) == bool(found.bucket)
    assert {"", ".", ".."}.isdisjoint(sent.split("/")) or not sent
