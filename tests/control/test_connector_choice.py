"""Which connector is meant: by an identifier, in lists, and by a Run or an image, which may name AWS's own as well
(spec 1.2, 1.3, 1.11, 4.1, 8.1, 8.2)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from support.catalogue_world import ACCOUNT, CALLER, ELSEWHERE, OTHER, REGION, STRANGER, World, world_fixture
from support.connector_world import DELAY, ROLE, active, asked, configuration, settled
from torpor.config import Config, NetworkSettings
from torpor.model.arn import managed_connector
from torpor.model.errors import Denied, Invalid, InvalidParameter, NotFound
from torpor.model.paging import PageRequest

world = world_fixture()


# Identifiers and lists


async def test_it_is_found_by_id_name_arn_and_arn_with_version(world: World) -> None:
    """Spec 1.3, 8.2."""
    made = await active(world)
    for identifier in (made.id, made.name, made.arn, made.version_arn(1)):
        assert (await world.catalogue.connectors.get(CALLER, identifier)).id == made.id


async def test_other_accounts_are_denied_and_other_regions_unknown(world: World) -> None:
    """Spec 9.4."""
    made, connectors = await active(world), world.catalogue.connectors
    with pytest.raises(Denied):
        await connectors.get(STRANGER, made.arn)
    for caller, identifier in (
        (STRANGER, made.id), (STRANGER, made.name), (ELSEWHERE, made.arn), (ELSEWHERE, made.name),
        (CALLER, managed_connector(REGION, "INTERNET_EGRESS")), (CALLER, made.arn.replace(made.id, made.name)),
    ):
        with pytest.raises(NotFound):
            await connectors.get(caller, identifier)
    with pytest.raises(InvalidParameter):
        await connectors.get(CALLER, "arn:aws:s3:::bucket")


async def test_lists_go_in_pages_and_by_state(tmp_path: Path) -> None:
    """Spec 1.2, 8.2: State, Marker, MaxItems."""
    world = World(tmp_path, Config(network=NetworkSettings(subnets={"subnet-1": {}})))
    await world.start()
    connectors = world.catalogue.connectors
    for number in range(3):
        await active(world, f"n{number}")
        await world.clock.advance(timedelta(seconds=1))
    await active(world, "broken", Configuration=configuration(SubnetIds=["subnet-9"]))
    first = await connectors.list(CALLER, "ACTIVE", PageRequest(2))
    second = await connectors.list(CALLER, "ACTIVE", PageRequest(2, first.cursor))
    assert [one.name for one in (*first.items, *second.items)] == ["n2", "n1", "n0"]
    assert second.cursor is None
    assert [one.name for one in (await connectors.list(CALLER, "FAILED", PageRequest())).items] == ["broken"]
    with pytest.raises(InvalidParameter):
        await connectors.list(CALLER, "FAILED", PageRequest(2, first.cursor))
    await connectors.update(CALLER, "n0", {"OperatorRole": ROLE + "2"})
    await settled(world, "n0")
    shown, page = await connectors.list_versions(CALLER, "n0", None, PageRequest(1))
    assert (shown.name, [one.version for one in page.items]) == ("n0", [2])
    _, page = await connectors.list_versions(CALLER, "n0", None, PageRequest(1, page.cursor))
    assert ([one.version for one in page.items], page.cursor) == ([1], None)
    await world.crash()


# What a Run or image may name


async def test_run_gets_http_ingress_unless_it_says_otherwise(world: World) -> None:
    """Spec 4.1, 8.1."""
    ingress = world.catalogue.connectors.ingress
    default = (managed_connector(REGION, "HTTP_INGRESS"),)
    assert await ingress(CALLER, None) == default
    assert await ingress(CALLER, ()) == default
    for names in (["HTTP_INGRESS", "SHELL_INGRESS"], ["ALL_INGRESS", "SHELL_INGRESS"], ["NO_INGRESS"]):
        arns = tuple(managed_connector(REGION, name) for name in names)
        assert await ingress(CALLER, arns) == arns  # ALL_INGRESS mixed is refused at the shell token only


@pytest.mark.parametrize("name", ["INTERNET_EGRESS", "FTP_INGRESS", "http_ingress"])
async def test_unknown_managed_ingress_is_refused(world: World, name: str) -> None:
    """Spec 1.11."""
    arn = managed_connector(REGION, name)
    with pytest.raises(Invalid, match=f"^Unrecognized managed network connector ARN: {arn}$"):
        await world.catalogue.connectors.ingress(CALLER, [arn])
    other = managed_connector("eu-west-1", "HTTP_INGRESS")
    with pytest.raises(Invalid, match="Unrecognized managed"):
        await world.catalogue.connectors.ingress(CALLER, [other])
    with pytest.raises(Invalid, match=r"^Malformed network connector ARN$"):
        await world.catalogue.connectors.ingress(CALLER, [name])


async def test_egress_is_one_connector_the_images_or_the_internet(world: World) -> None:
    """Spec 1.11, 4.1, 8.1: NO_EGRESS does not exist; `[]` is as if omitted."""
    egress = world.catalogue.connectors.egress
    internet = managed_connector(REGION, "INTERNET_EGRESS")
    made = await active(world)
    assert await egress(CALLER, None) == (internet,)
    assert await egress(CALLER, [], [made.arn]) == (made.arn,)
    assert await egress(CALLER, [internet], [made.arn]) == (internet,)
    assert await egress(CALLER, [made.version_arn(1)]) == (made.version_arn(1),)
    with pytest.raises(Invalid, match=r"^Only one egress network connector can be provided$"):
        await egress(CALLER, [internet, made.arn])
    with pytest.raises(Invalid, match="Unrecognized managed network connector ARN"):
        await egress(CALLER, [managed_connector(REGION, "NO_EGRESS")])


async def test_a_customers_connector_must_exist_be_active_and_be_ones_own(slow_world: World) -> None:
    """Spec 8.2: the texts are unrecorded."""
    world, connectors = slow_world, slow_world.catalogue.connectors
    made = await connectors.create(CALLER, asked())
    with pytest.raises(Invalid, match="is not in ACTIVE state"):
        await connectors.egress(CALLER, [made.arn])
    await world.clock.advance(DELAY)
    await connectors.egress(CALLER, [made.arn])
    with pytest.raises(Invalid, match="cannot be used for ingress"):
        await connectors.ingress(CALLER, [made.arn])
    for missing in (made.version_arn(9), made.arn.replace(made.id, "nc-none"), made.arn.replace(made.id, made.name)):
        with pytest.raises(NotFound, match="Network connector not found for: "):
            await connectors.egress(CALLER, [missing])
    with pytest.raises(NotFound):
        await connectors.egress(ELSEWHERE, [made.arn])
    with pytest.raises(Denied):
        await connectors.egress(CALLER, [made.arn.replace(ACCOUNT, OTHER)])
    with pytest.raises(Denied):
        await connectors.egress(replace(STRANGER, region=REGION), [made.arn])
