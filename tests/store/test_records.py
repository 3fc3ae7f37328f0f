"""What is written to the tables of images, versions, builds and accounts is what is read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection

from torpor.model.account import Credential
from torpor.model.hooks import Hook, Hooks
from torpor.model.ids import AccountId, BuildId, ImageName
from torpor.model.image import (
    Build,
    BuildState,
    Image,
    ImageState,
    ImageVersion,
    SnapshotSizes,
    VersionState,
    VersionStatus,
)
from torpor.model.moments import from_microseconds, microseconds
from torpor.store import Database, accounts, builds, images, secrets, versions
from torpor.store.versions import number_of

ACCOUNT, REGION = AccountId("000000000000"), "us-east-1"
NOW = datetime(2026, 1, 1, 12, 30, 0, 123456, tzinfo=UTC)
IMAGE = Image("id-1", ACCOUNT, REGION, ImageName("app"), ImageState.CREATING, NOW, NOW, tags={"a": "ü"})
VERSION = ImageVersion(
    image_arn=IMAGE.arn, version="1.0", state=VersionState.PENDING, status=VersionStatus.INACTIVE, state_reason=None,
    created_at=NOW, updated_at=NOW, base_image_arn="base", base_image_version="1", build_role_arn="role",
    code_artifact_uri="s3://b/k", memory_mib=512,
    hooks=Hooks(9000, {Hook.READY: timedelta(seconds=60), Hook.RUN: timedelta(seconds=1)}), environment={"A": "b"},
    all_capabilities=True, egress_connectors=("x", "y"), description="d", request={"logging": {"disabled": {}}},
)
BUILD = Build(BuildId("b1"), IMAGE.arn, "1.0", BuildState.PENDING, None, NOW, "ARM_64", "GRAVITON", "3")
PLACE = builds.Place("id-1", ACCOUNT, REGION, 512)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'torpor.db'}")
    await made.create_tables()
    yield made
    await made.close()


async def test_an_image_is_read_as_it_was_written(database: Database) -> None:
    await database.write(lambda connection: images.insert(connection, IMAGE))
    assert await database.read(lambda connection: images.find(connection, ACCOUNT, REGION, "app")) == IMAGE
    changed = replace(
        IMAGE, state=ImageState.CREATED, updated_at=NOW + timedelta(1), latest_active_version="2.0", tags={},
        latest_failed_version="1.0",
    )
    await database.write(lambda connection: images.save(connection, changed))
    assert await database.read(lambda connection: images.get(connection, "id-1")) == changed
    assert await database.read(lambda connection: images.in_state(connection, ImageState.CREATED)) == [changed]
    assert await database.read(lambda connection: images.find(connection, ACCOUNT, "eu-west-1", "app")) is None
    await database.write(lambda connection: images.remove(connection, "id-1"))
    assert await database.read(lambda connection: images.get(connection, "id-1")) is None


async def test_a_version_is_read_as_it_was_written_and_only_its_standing_changes(database: Database) -> None:
    await database.write(lambda connection: versions.insert(connection, "id-1", VERSION))
    assert await database.read(lambda connection: versions.find(connection, "id-1", "1.0")) == VERSION
    changed = replace(VERSION, state=VersionState.FAILED, status=VersionStatus.ACTIVE, state_reason="why")
    await database.write(lambda connection: versions.save(connection, "id-1", replace(changed, memory_mib=8192)))
    assert await database.read(lambda connection: versions.find(connection, "id-1", "1.0")) == changed
    for missing in ("1", "01.0", "1.1", "2.0", "", "x", "1.0.0", "٣.0", "9" * 30 + ".0"):
        assert await database.read(partial(versions.find, image_id="id-1", version=missing)) is None


async def test_a_build_is_read_as_it_was_written(database: Database) -> None:
    await database.write(lambda connection: builds.insert(connection, PLACE, BUILD))
    assert await database.read(lambda connection: builds.find(connection, "id-1", "1.0", "b1")) == BUILD
    assert await database.read(builds.unfinished) == [(PLACE, BUILD)]
    for sizes in (SnapshotSizes(1, 2, 3), SnapshotSizes(None, 2**40, None), None):
        changed = replace(BUILD, state=BuildState.FAILED, state_reason="why", sizes=sizes)
        await database.write(partial(builds.save, build=changed))
        assert await database.read(lambda connection: builds.find(connection, "id-1", "1.0", "b1")) == changed
    assert await database.read(builds.unfinished) == []


async def test_versions_are_numbered_upwards_also_after_the_newest_was_removed(database: Database) -> None:
    await database.write(lambda connection: images.insert(connection, IMAGE))
    taken = [await database.write(lambda connection: images.take_version(connection, "id-1")) for _ in range(11)]
    assert taken == [f"{number}.0" for number in range(1, 12)]


async def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    def half(connection: Connection) -> None:
        images.insert(connection, IMAGE)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await database.write(half)
    assert await database.read(lambda connection: images.get(connection, "id-1")) is None


async def test_a_secret_is_made_once(database: Database) -> None:
    first = await database.write(lambda connection: secrets.get_or_make(connection, "cursors", 32))
    again = await database.write(lambda connection: secrets.get_or_make(connection, "cursors", 32))
    other = await database.write(lambda connection: secrets.get_or_make(connection, "other", 32))
    assert first == again != other
    assert len(first) == 32


async def test_every_change_of_accounts_is_a_new_revision(database: Database) -> None:
    key = Credential("AKIA", "secret", None, ACCOUNT, "root")
    seen = [await database.read(accounts.current_revision)]
    for change in (
        lambda connection: accounts.insert_key(connection, key, NOW),
        lambda connection: accounts.put_limit(connection, ACCOUNT, "images", 5),
        lambda connection: accounts.remove_key(connection, "AKIA"),
    ):
        await database.write(change)
        seen.append(await database.read(accounts.current_revision))
    assert seen == sorted(set(seen))
    assert (await database.read(accounts.load)).limits == {(ACCOUNT, "images"): 5}


@given(st.datetimes(timezones=st.just(UTC)))
def test_moments_keep_their_microseconds(moment: datetime) -> None:
    assert from_microseconds(microseconds(moment)) == moment


@given(st.integers(1, 10**8))
def test_a_version_and_its_number_are_one(number: int) -> None:
    assert number_of(f"{number}.0") == number


@given(st.text())
def test_any_text_is_a_version_or_none(text: str) -> None:
    number = number_of(text)
    assert number is None or f"{number}.0" == text
