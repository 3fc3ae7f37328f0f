"""Torpor's routes for operators: leaks, recovery, exports and imports."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.api_world import ACCOUNT, ApiWorld, api_world
from torpor.model.account import PrincipalKind
from torpor.model.ids import AccountId

STAGE = "1@2-0123abcd"
PREFIX = "/torpor/v1"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[ApiWorld]:
    async with api_world(tmp_path) as made:
        yield made


async def exported(world: ApiWorld, arn: str) -> dict[str, Any]:
    answer = await world.ask("POST", f"{PREFIX}/exports", {"stage": STAGE, "imageIdentifier": arn})
    assert answer.status == 200, answer.document
    outbound: dict[str, Any] = answer.document["outbound"]
    return outbound


@pytest.mark.parametrize(("method", "path", "action"), [
    ("GET", "/leaks", "torpor:GetLeaks"), ("POST", "/gc", "torpor:CollectGarbage"),
    ("GET", "/exports", "torpor:Export"), ("POST", "/exports", "torpor:Export"),
    ("POST", "/imports", "torpor:Import"), ("POST", "/imports/check", "torpor:Import"),
])  # fmt: skip
async def test_each_route_needs_its_permission(world: ApiWorld, method: str, path: str, action: str) -> None:
    accounts = world.control.accounts
    principal = await accounts.put_principal(AccountId(ACCOUNT), PrincipalKind.USER, "u", {})
    user = replace(world, credential=await accounts.create_key(principal.arn))
    answer = await user.ask(method, PREFIX + path, {})
    assert (answer.status, action in str(answer.message)) == (403, True)


async def test_recovery_needs_its_permission_on_the_image(world: ApiWorld) -> None:
    microvm = await world.run_microvm(await world.create_image())
    accounts = world.control.accounts
    principal = await accounts.put_principal(AccountId(ACCOUNT), PrincipalKind.USER, "u", {})
    user = replace(world, credential=await accounts.create_key(principal.arn))
    answer = await user.ask("POST", f"{PREFIX}/microvms/{microvm}/recover")
    assert (answer.status, "torpor:RecoverMicrovm" in str(answer.message)) == (403, True)


async def test_a_machine_in_use_has_no_leaks_and_gc_removes_nothing(world: ApiWorld) -> None:
    microvm = await world.run_microvm(await world.create_image())
    assert (await world.ask("GET", f"{PREFIX}/leaks")).document == {"items": []}
    assert (await world.ask("POST", f"{PREFIX}/gc")).document == {"items": []}
    assert (await world.call("GetMicrovm", microvmIdentifier=microvm)).document["state"] == "RUNNING"


async def test_what_was_exported_is_imported_as_an_image_with_all_that_was_asked_for(world: ApiWorld) -> None:
    arn = await world.create_image(environmentVariables={"A": "b"}, tags={"team": "x"})
    outbound = await exported(world, arn)
    answer = await world.ask("POST", f"{PREFIX}/imports", {"stage": STAGE, "about": outbound["about"], "name": "copy"})
    assert answer.status == 200, answer.document
    copy = answer.document["imageArn"]
    version = (await world.call("GetMicrovmImageVersion", imageIdentifier=copy, imageVersion="1.0")).document
    original = (await world.call("GetMicrovmImageVersion", imageIdentifier=arn, imageVersion="1.0")).document
    same = ("environmentVariables", "hooks", "baseImageArn", "codeArtifact", "resources", "state", "status")
    assert {name: version.get(name) for name in same} == {name: original.get(name) for name in same}
    assert (await world.call("GetMicrovmImage", imageIdentifier=copy)).document["state"] == "CREATED"
    assert not Path(outbound["path"]).exists()
    await world.run_microvm(copy)


@pytest.mark.parametrize("stage", ["../../etc", "x", "", 5, None, "1@2-0123abcd/.."])
async def test_no_stage_leads_anywhere_else(world: ApiWorld, stage: Any) -> None:
    arn = await world.create_image()
    answer = await world.ask("POST", f"{PREFIX}/exports", {"stage": stage, "imageIdentifier": arn})
    assert answer.status in (400, 404)


@pytest.mark.parametrize("about", [
    None, [], {}, {"format": 1, "kind": "image"}, {"format": 2, "kind": "image"}, {"format": 1, "kind": "backup"},
    {"format": 1, "kind": "image", "facts": {}, "name": "x", "asked": {"memory_mib": 7}},
])  # fmt: skip
async def test_archives_that_cannot_be_understood_are_refused(world: ApiWorld, about: Any) -> None:
    for path in ("imports", "imports/check"):
        answer = await world.ask("POST", f"{PREFIX}/{path}", {"stage": STAGE, "about": about})
        assert answer.status == 400, answer.document


async def test_a_record_that_cannot_be_understood_leaves_nothing(world: ApiWorld) -> None:
    outbound = await exported(world, await world.create_image())
    about = {**outbound["about"], "asked": {**outbound["about"]["asked"], "hooks": 5}}
    answer = await world.ask("POST", f"{PREFIX}/imports", {"stage": STAGE, "about": about, "name": "copy"})
    assert answer.status == 400, answer.document
    assert (await world.call("GetMicrovmImage", imageIdentifier=f"{_prefix()}copy")).status == 404
    assert [each["kind"] for each in (await world.ask("GET", f"{PREFIX}/leaks")).document["items"]] == []


@pytest.mark.parametrize("name", ["no spaces", "", "a" * 300, "a/b", {}])
async def test_a_name_that_no_image_can_have_is_refused(world: ApiWorld, name: Any) -> None:
    outbound = await exported(world, await world.create_image())
    answer = await world.ask("POST", f"{PREFIX}/imports", {"stage": STAGE, "about": outbound["about"] | {"name": name}})
    assert answer.status == 400, answer.document


def _prefix() -> str:
    return f"arn:aws:lambda:us-east-1:{ACCOUNT}:microvm-image:"
