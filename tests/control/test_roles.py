"""Credentials of execution roles (spec 13)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar

import pytest

from support.catalogue_world import ACCOUNT, OTHER, REGION, World, world_fixture
from torpor.config import CredentialSettings
from torpor.control.roles import RENEW_BEFORE, Roles
from torpor.model.account import PrincipalKind, identity_of
from torpor.model.caller import Caller
from torpor.model.errors import Denied, RoleUnavailable
from torpor.model.ids import AccountId

ROLE = f"arn:aws:iam::{ACCOUNT}:role/worker"
POLICY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "lambda:ListMicrovms", "Resource": "*"}]}
VM = "microvm-1"

world = world_fixture()


def roles_of(world: World, settings: CredentialSettings | None = None) -> Roles:
    def place_of(owner: str) -> tuple[AccountId, str] | None:
        return (AccountId(ACCOUNT), REGION) if owner.startswith("microvm-") else None

    return Roles(world.catalogue.accounts, settings or CredentialSettings(), world.clock, place_of)


async def test_a_role_of_the_account_gives_a_session_of_that_role(world: World) -> None:
    accounts = world.catalogue.accounts
    await accounts.put_principal(AccountId(ACCOUNT), PrincipalKind.ROLE, "worker", {"p": POLICY})
    found = await roles_of(world).credentials(ROLE, VM)
    known = accounts.credential(found.access_key_id)
    assert known is not None
    assert (known.secret, known.session_token) == (found.secret, found.session_token)
    assert (known.principal, identity_of(known.principal)) == (
        f"arn:aws:sts::{ACCOUNT}:assumed-role/worker/{VM}", ROLE)
    assert found.expires_at == world.clock.now() + timedelta(hours=1)
    caller = Caller(AccountId(ACCOUNT), REGION, known.principal, known.access_key_id)
    await accounts.authorize(caller, "lambda:ListMicrovms")
    with pytest.raises(Denied):
        await accounts.authorize(caller, "lambda:RunMicrovm")
    assert found.secret not in repr(found)


async def test_a_role_that_nobody_made_may_do_nothing(world: World) -> None:
    found = await roles_of(world).credentials(ROLE, VM)
    known = world.catalogue.accounts.credential(found.access_key_id)
    assert known is not None
    caller = Caller(AccountId(ACCOUNT), REGION, known.principal, known.access_key_id)
    with pytest.raises(Denied):
        await world.catalogue.accounts.authorize(caller, "lambda:ListMicrovms")


@pytest.mark.parametrize("role", [
    f"arn:aws:iam::{OTHER}:role/admin", f"arn:aws:iam::{ACCOUNT}:root", f"arn:aws:iam::{ACCOUNT}:user/ann", "worker",
])
async def test_nothing_but_a_role_of_the_microvms_own_account_gives_credentials(world: World, role: str) -> None:
    with pytest.raises(RoleUnavailable):
        await roles_of(world).credentials(role, VM)


async def test_a_microvm_that_has_ended_gets_none(world: World) -> None:
    with pytest.raises(RoleUnavailable):
        await roles_of(world).credentials(ROLE, "ended")


async def test_credentials_stay_the_same_until_shortly_before_their_end(world: World) -> None:
    roles = roles_of(world)
    first = await roles.credentials(ROLE, VM)
    at_once = await asyncio.gather(*(roles.credentials(ROLE, VM) for _ in range(5)))
    assert set(at_once) == {first}
    assert await roles.credentials(ROLE, "microvm-2") != first
    await world.clock.advance(timedelta(hours=1) - RENEW_BEFORE)
    assert await roles.credentials(ROLE, VM) == first
    await world.clock.advance(timedelta(seconds=1))
    second = await roles.credentials(ROLE, VM)
    assert second.expires_at > first.expires_at


class Sts(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []
    status: ClassVar[int] = 200

    def do_POST(self) -> None:
        self.asked.append(self.rfile.read(int(self.headers["content-length"])).decode())
        body = b"""<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>
            <AccessKeyId>ASIAFROMSTS</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>
            <Expiration>2030-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"""
        self.send_response(self.status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def sts(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIASERVICE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    Sts.asked, Sts.status = [], 200
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sts)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


async def test_with_an_sts_the_role_is_assumed_there(world: World, sts: str) -> None:
    roles = roles_of(world, CredentialSettings(sts_endpoint_url=sts, duration=timedelta(minutes=20)))
    foreign = f"arn:aws:iam::{OTHER}:role/worker"
    found = await roles.credentials(foreign, VM)
    assert (found.access_key_id, found.secret, found.session_token) == ("ASIAFROMSTS", "s", "t")
    (asked,) = Sts.asked
    assert "Action=AssumeRole" in asked
    assert "DurationSeconds=1200" in asked
    assert f"RoleSessionName={VM}" in asked


async def test_an_sts_that_refuses_is_no_credentials(world: World, sts: str) -> None:
    Sts.status = 403
    with pytest.raises(RoleUnavailable):
        await roles_of(world, CredentialSettings(sts_endpoint_url=sts)).credentials(ROLE, VM)
