"""Managed base images (spec 1.2, 1.3, 1.4)."""

from __future__ import annotations

import pytest

from support.catalogue_world import BASE, CALLER, ELSEWHERE, STRANGER, image_arn
from torpor.control.managed import Managed
from torpor.control.paging import Cursors
from torpor.model.errors import Invalid, NotFound
from torpor.model.managed import ManagedStatus
from torpor.model.paging import PageRequest

MANAGED = Managed("X86_64", Cursors(b"key"))


async def test_there_is_one_managed_image_in_every_region_and_account() -> None:
    for caller in (CALLER, STRANGER, ELSEWHERE):
        page = await MANAGED.list_images(caller, PageRequest())
        assert [image.arn for image in page.items] == [
            f"arn:aws:lambda:{caller.region}:aws:microvm-image:al2023-1"
        ]
        assert page.cursor is None


async def test_its_versions_are_bare_numbers_newest_first() -> None:
    page = await MANAGED.list_versions(CALLER, BASE, PageRequest())
    assert [(version.version, version.status) for version in page.items] == [
        ("1", ManagedStatus.AVAILABLE), ("0", ManagedStatus.AVAILABLE),
    ]
    assert page.items[0].architectures == ("X86_64",)
    first = await MANAGED.list_versions(CALLER, BASE, PageRequest(1))
    second = await MANAGED.list_versions(CALLER, BASE, PageRequest(1, first.cursor))
    assert [version.version for version in (*first.items, *second.items)] == ["1", "0"]
    assert second.cursor is None


async def test_other_images_are_not_managed() -> None:
    for arn in (image_arn("al2023-1"), BASE.replace("al2023-1", "al2"), BASE.replace("us-east-1", "eu-west-1")):
        with pytest.raises(NotFound):
            await MANAGED.list_versions(CALLER, arn, PageRequest())
    with pytest.raises(Invalid, match="Invalid ARN format: al2023-1"):
        await MANAGED.list_versions(CALLER, "al2023-1", PageRequest())


def test_a_request_means_the_latest_version_unless_it_says() -> None:
    assert [MANAGED.resolve(CALLER, BASE, version) for version in (None, "1", "0")] == ["1", "1", "0"]
    with pytest.raises(Invalid, match=r"^Expected a single major version number$"):
        MANAGED.resolve(CALLER, BASE, "1.0")
    with pytest.raises(Invalid, match=r"^No managed MicroVM Image with arn \S+:al2023-9 is available$"):
        MANAGED.resolve(CALLER, BASE.replace("al2023-1", "al2023-9"), None)
    with pytest.raises(Invalid, match=r"^Invalid ARN format: "):
        MANAGED.resolve(CALLER, image_arn("x").replace("image:", "image/"), None)
