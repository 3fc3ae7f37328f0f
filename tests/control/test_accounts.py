"""Accounts, keys, sessions and what their principals may do (spec 9.4)."""

from __future__ import annotations

import stat
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from support.catalogue_world import ACCOUNT, CALLER, OTHER, REGION, REQUEST, World, image_arn, until, world_fixture
from torpor.config import AccountSettings, Config
from torpor.control.accounts import Accounts
from torpor.model.account import Credential, PrincipalKind
from torpor.model.caller import Caller
from torpor.model.errors import Conflict, Denied, Invalid, NotFound
from torpor.model.ids import AccountId
from torpor.store import Database

IMAGE = image_arn("app")
ROOT = f"arn:aws:iam::{ACCOUNT}:root"
ADA = f"arn:aws:iam::{ACCOUNT}:user/ada"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/runner"

world = world_fixture()


def document(effect: str, action: Any, resource: Any = "*", **more: Any) -> dict[str, Any]:
    return {"Statement": [{"Effect": effect, "Action": action, "Resource": resource, **more}]}


def as_principal(arn: str) -> Caller:
    return replace(CALLER, principal=arn)


async def ada(world: World, *policies: dict[str, Any]) -> Caller:
    named = {f"policy-{number}": policy for number, policy in enumerate(policies)}
    await world.catalogue.accounts.put_principal(ACCOUNT, PrincipalKind.USER, "ada", named)
    return as_principal(ADA)


# Keys


async def test_the_first_start_makes_a_default_account_with_a_key_that_stays(world: World) -> None:
    accounts = world.catalogue.accounts
    made = await accounts.ensure_default()
    assert [account.account for account in accounts.list_accounts()] == [ACCOUNT]
    assert made.principal == ROOT
    assert made.access_key_id.startswith("AKIA")
    assert accounts.credential(made.access_key_id) == made
    await world.restart()
    assert await world.catalogue.accounts.ensure_default() == made
    assert world.catalogue.accounts.credential(made.access_key_id) == made


async def test_the_default_credential_can_be_had_before_anything_else_runs(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'torpor.db'}")
    await database.create_tables()
    clock = World(tmp_path).clock
    first = await Accounts(Config(data_dir=tmp_path), database, clock).ensure_default()
    assert await Accounts(Config(data_dir=tmp_path), database, clock).ensure_default() == first
    await database.close()


async def test_the_configuration_may_name_the_default_key_and_change_its_secret(tmp_path: Path) -> None:
    world = World(tmp_path, Config(accounts=AccountSettings("AKIAMINE", "first")))
    await world.start()
    assert (await world.catalogue.accounts.ensure_default()).access_key_id == "AKIAMINE"
    world.config = replace(world.config, accounts=AccountSettings("AKIAMINE", "second"))
    await world.restart()
    found = world.catalogue.accounts.credential("AKIAMINE")
    assert found is not None
    assert found.secret == "second"
    await world.crash()


async def test_an_unknown_key_is_nobody(world: World) -> None:
    assert world.catalogue.accounts.credential("AKIAUNKNOWN") is None


async def test_a_secret_is_in_no_text_and_the_database_is_its_owners_alone(world: World) -> None:
    made = await world.catalogue.accounts.create_session(ROOT, timedelta(hours=1))
    assert made.session_token is not None
    for text in (repr(made), str(made), repr(AccountSettings("AKIAMINE", made.secret))):
        assert made.secret not in text
        assert made.session_token not in text
    for path in world.config.data_dir.glob("torpor.db*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_key_works_at_once_and_no_longer_when_it_is_deleted(world: World) -> None:
    accounts = world.catalogue.accounts
    await ada(world)
    made = await accounts.create_key(ADA)
    assert accounts.credential(made.access_key_id) == made
    assert made in accounts.list_keys(ACCOUNT)
    await accounts.delete_key(made.access_key_id)
    assert accounts.credential(made.access_key_id) is None
    with pytest.raises(NotFound):
        await accounts.delete_key(made.access_key_id)


async def test_a_key_that_another_process_made_works_within_a_second(world: World) -> None:
    database = Database(world.config.database_url)
    elsewhere = Accounts(world.config, database, world.clock)
    await elsewhere.start()
    made = await elsewhere.create_key(ROOT)

    async def found() -> Credential | None:
        return world.catalogue.accounts.credential(made.access_key_id)

    assert await until(found, lambda credential: credential is not None, seconds=3) == made
    await elsewhere.delete_key(made.access_key_id)
    await until(found, lambda credential: credential is None, seconds=3)
    await database.close()


async def test_a_session_ends_at_its_time(world: World) -> None:
    accounts = world.catalogue.accounts
    made = await accounts.create_session(ROOT, timedelta(minutes=15))
    assert made.access_key_id.startswith("ASIA")
    await world.clock.advance(timedelta(minutes=14, seconds=59))
    assert accounts.credential(made.access_key_id) == made
    await world.clock.advance(timedelta(seconds=1))
    assert accounts.credential(made.access_key_id) is None


async def test_a_session_of_a_role_acts_as_somebody_in_that_role(world: World) -> None:
    accounts = world.catalogue.accounts
    await accounts.put_principal(ACCOUNT, PrincipalKind.ROLE, "runner", {"p": document("Allow", "lambda:Get*")})
    made = await accounts.create_session(ROLE, timedelta(hours=1), "job-7")
    assert made.principal == f"arn:aws:sts::{ACCOUNT}:assumed-role/runner/job-7"
    await accounts.authorize(as_principal(made.principal), "lambda:GetMicrovmImage", IMAGE)
    with pytest.raises(Denied):
        await accounts.authorize(as_principal(made.principal), "lambda:RunMicrovm", IMAGE)
    with pytest.raises(Invalid):
        await accounts.create_key(ROLE)
    for duration in (timedelta(0), timedelta(hours=13)):
        with pytest.raises(Invalid):
            await accounts.create_session(ROLE, duration)


async def test_a_deleted_principal_has_neither_keys_nor_rights(world: World) -> None:
    accounts = world.catalogue.accounts
    caller = await ada(world, document("Allow", "*"))
    key = await accounts.create_key(ADA)
    await accounts.delete_principal(ADA)
    assert accounts.credential(key.access_key_id) is None
    with pytest.raises(Denied):
        await accounts.authorize(caller, "lambda:GetMicrovmImage", IMAGE)


async def test_what_cannot_be_made_is_refused(world: World) -> None:
    accounts = world.catalogue.accounts
    with pytest.raises(Invalid):
        await accounts.create_account(AccountId("12"), "short")
    with pytest.raises(Conflict):
        await accounts.create_account(ACCOUNT, "again")
    with pytest.raises(NotFound):
        await accounts.put_principal(OTHER, PrincipalKind.USER, "x", {})
    with pytest.raises(Invalid):
        await accounts.put_principal(ACCOUNT, PrincipalKind.USER, "a/b", {})
    with pytest.raises(Invalid):
        await accounts.put_principal(ACCOUNT, PrincipalKind.USER, "x", {"p": {"Statement": [{}]}})
    for principal in ("x", f"arn:aws:iam::{OTHER}:root", f"arn:aws:iam::{ACCOUNT}:user/nobody"):
        with pytest.raises(NotFound):
            await accounts.create_key(principal)


# Permission


async def test_the_root_of_an_account_may_do_everything_in_it(world: World) -> None:
    for action, resource in (("lambda:RunMicrovm", IMAGE), ("lambda:ListMicrovms", None), ("iam:PassRole", ROLE)):
        await world.catalogue.accounts.authorize(CALLER, action, resource)


async def test_what_no_policy_allows_is_denied_in_the_words_of_the_service(world: World) -> None:
    """Spec 9.4."""
    with pytest.raises(Denied) as denied:
        await world.catalogue.accounts.authorize(await ada(world), "lambda:RunMicrovm", IMAGE)
    assert denied.value.message == (
        f"User: {ADA} is not authorized to perform: lambda:RunMicrovm on resource: {IMAGE} "
        "because no identity-based policy allows the lambda:RunMicrovm action"
    )


async def test_an_explicit_deny_wins_and_says_so(world: World) -> None:
    caller = await ada(world, document("Allow", "*"), document("Deny", "lambda:Run*", IMAGE))
    await world.catalogue.accounts.authorize(caller, "lambda:RunMicrovm", image_arn("other"))
    with pytest.raises(Denied) as denied:
        await world.catalogue.accounts.authorize(caller, "lambda:RunMicrovm", IMAGE)
    assert denied.value.message == (
        f"User: {ADA} is not authorized to perform: lambda:RunMicrovm on resource: {IMAGE} "
        "with an explicit deny in an identity-based policy"
    )


async def test_operations_without_a_resource_need_a_star(world: World) -> None:
    """Spec 9.4: list operations and CreateMicrovmImage authorize on `*`."""
    caller = await ada(world, document("Allow", "lambda:*", IMAGE))
    with pytest.raises(Denied):
        await world.catalogue.accounts.authorize(caller, "lambda:CreateMicrovmImage")
    caller = await ada(world, document("Allow", "lambda:CreateMicrovmImage"))
    await world.catalogue.accounts.authorize(caller, "lambda:CreateMicrovmImage")


async def test_a_resource_of_another_account_is_denied_even_to_root(world: World) -> None:
    """Spec 1.11, 9.4: cross-account ARNs get 403."""
    foreign = image_arn("app", account=OTHER)
    for caller in (CALLER, await ada(world, document("Allow", "*"))):
        with pytest.raises(Denied, match="because no resource-based policy allows the lambda:GetMicrovmImage action"):
            await world.catalogue.accounts.authorize(caller, "lambda:GetMicrovmImage", foreign)


async def test_passing_a_connector_needs_its_own_permission_also_for_the_defaults(world: World) -> None:
    """Spec 8.1."""
    arn = f"arn:aws:lambda:{REGION}:aws:network-connector:aws-network-connector:INTERNET_EGRESS"
    accounts = world.catalogue.accounts
    await accounts.authorize(CALLER, "lambda:PassNetworkConnector", arn)
    with pytest.raises(Denied):
        await accounts.authorize(await ada(world), "lambda:PassNetworkConnector", arn)
    caller = await ada(world, document("Allow", "lambda:PassNetworkConnector", arn))
    await accounts.authorize(caller, "lambda:PassNetworkConnector", arn)


async def test_passing_a_role_needs_permission_on_the_role(world: World) -> None:
    """Spec 9.4."""
    accounts = world.catalogue.accounts
    passed = {"StringEquals": {"iam:PassedToService": "lambda.amazonaws.com"}}
    caller = await ada(world, document("Allow", "iam:PassRole", ROLE, Condition=passed))
    await accounts.authorize(caller, "iam:PassRole", ROLE)
    with pytest.raises(Denied, match="iam:PassRole on resource: "):
        await accounts.authorize(caller, "iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/admin")


async def test_roles_need_not_exist_unless_the_setting_says_so(tmp_path: Path) -> None:
    elsewhere = "arn:aws:iam::123456789012:role/service-role/lambda"
    world = World(tmp_path)
    await world.start()
    await world.catalogue.accounts.authorize(CALLER, "iam:PassRole", elsewhere)
    world.config = replace(world.config, accounts=AccountSettings(strict_roles=True))
    await world.restart()
    accounts = world.catalogue.accounts
    for role in (elsewhere, ROLE):
        with pytest.raises(Invalid, match="does not exist"):
            await accounts.authorize(CALLER, "iam:PassRole", role)
    await accounts.put_principal(ACCOUNT, PrincipalKind.ROLE, "runner", {})
    await accounts.authorize(CALLER, "iam:PassRole", ROLE)
    await world.crash()


async def test_conditions_see_the_caller_its_region_and_what_the_request_adds(world: World) -> None:
    accounts = world.catalogue.accounts
    conditions = {
        "StringEquals": {"aws:RequestedRegion": REGION, "aws:username": "ada", "aws:ResourceAccount": ACCOUNT},
        "ArnEquals": {"aws:PrincipalArn": ADA},
        "DateLessThan": {"aws:CurrentTime": "2026-01-01T01:00:00Z"},
    }
    caller = await ada(world, document("Allow", "*", Condition=conditions))
    await accounts.authorize(caller, "lambda:GetMicrovmImage", IMAGE)
    with pytest.raises(Denied):
        await accounts.authorize(replace(caller, region="eu-west-1"), "lambda:GetMicrovmImage", IMAGE)
    await world.clock.advance(timedelta(hours=1))
    with pytest.raises(Denied):
        await accounts.authorize(caller, "lambda:GetMicrovmImage", IMAGE)


async def test_the_tags_of_a_resource_decide_where_a_policy_asks_for_them(world: World) -> None:
    """Spec 9.3, 9.4."""
    accounts = world.catalogue.accounts
    production = {"StringEquals": {"aws:ResourceTag/stage": "production"}}
    caller = await ada(world, document("Allow", "*"), document("Deny", "lambda:Delete*", Condition=production))
    await world.catalogue.images.create(CALLER, "app", REQUEST, {"stage": "test"})
    await accounts.authorize(caller, "lambda:DeleteMicrovmImage", IMAGE)
    await world.catalogue.tags.add(CALLER, IMAGE, {"stage": "production"})
    with pytest.raises(Denied):
        await accounts.authorize(caller, "lambda:DeleteMicrovmImage", IMAGE)
    await accounts.authorize(caller, "lambda:DeleteMicrovmImage", image_arn("none"))
    await accounts.authorize(caller, "lambda:ListMicrovmImages")


@pytest.mark.parametrize(
    "policy",
    [
        document("Deny", "*", Condition={"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}),
        document("Allow", "*", "arn:aws:lambda:*:*:microvm-image:${saml:sub}"),
        document("Allow", "*", Condition={"StringEquals": {"aws:username": "${aws:PrincipalTag/name}"}}),
    ],
)  # fmt: skip
async def test_a_policy_that_asks_for_what_no_request_has_is_refused(world: World, policy: dict[str, Any]) -> None:
    """A Deny that never sees its key would never deny."""
    with pytest.raises(Invalid, match="is not known here"):
        await ada(world, policy)
