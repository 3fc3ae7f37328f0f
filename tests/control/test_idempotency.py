"""Client tokens (spec 1.10)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.catalogue_world import ACCOUNT, CALLER, ELSEWHERE, REGION, STRANGER
from torpor.control import idempotency
from torpor.model.caller import Caller
from torpor.model.errors import Conflict
from torpor.store import Database

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'torpor.db'}")
    await made.create_tables()
    yield made
    await made.close()


def claim(caller: Caller = CALLER, operation: str = "RunMicrovm", token: str | None = "t", **parameters: Any) -> Any:
    return idempotency.claim(caller, operation, token, parameters)


async def keep(database: Database, claimed: Any, resource: str, expires_at: datetime | None = None) -> None:
    await database.write(lambda connection: idempotency.keep(connection, claimed, resource, NOW, expires_at))


async def recall(database: Database, claimed: Any, now: datetime = NOW) -> str | None:
    return await database.write(lambda connection: idempotency.recall(connection, claimed, now))


async def test_a_token_brings_back_what_it_made(database: Database) -> None:
    assert await recall(database, claim(a=1)) is None
    await keep(database, claim(a=1), "microvm-1")
    assert await recall(database, claim(a=1)) == "microvm-1"


async def test_a_token_with_other_parameters_is_a_conflict(database: Database) -> None:
    await keep(database, claim(a=1), "microvm-1")
    for other in (claim(a=2), claim(), claim(a=1, b=None)):
        with pytest.raises(Conflict):
            await recall(database, other)


async def test_tokens_of_accounts_regions_and_operations_have_nothing_to_do_with_each_other(
    database: Database,
) -> None:
    await keep(database, claim(a=1), "microvm-1")
    for other in (claim(STRANGER, a=2), claim(ELSEWHERE, a=2), claim(operation="Other", a=2), claim(token="u", a=2)):
        assert await recall(database, other) is None
    assert await recall(database, claim(replace(CALLER, principal="other"), a=1)) == "microvm-1"


async def test_a_request_without_a_token_is_not_remembered(database: Database) -> None:
    assert claim(token=None) is None
    await keep(database, None, "microvm-1")
    assert await recall(database, None) is None


async def test_a_token_may_expire_and_be_used_anew(database: Database) -> None:
    await keep(database, claim(a=1), "microvm-1", NOW + DAY)
    assert await recall(database, claim(a=1), NOW + DAY - timedelta(microseconds=1)) == "microvm-1"
    assert await recall(database, claim(a=2), NOW + DAY) is None
    await keep(database, claim(a=2), "microvm-2")
    assert await recall(database, claim(a=2), NOW + DAY) == "microvm-2"


async def test_a_resource_that_is_gone_takes_its_tokens_along_and_no_others(database: Database) -> None:
    await keep(database, claim(token="a"), "img#1.0")
    await keep(database, claim(token="b"), "img2#1.0")
    await keep(database, claim(token="c"), "im_#1.0")
    await database.write(
        lambda connection: idempotency.forget(connection, ACCOUNT, REGION, ("RunMicrovm",), "im_#")
    )
    await database.write(
        lambda connection: idempotency.forget(connection, ACCOUNT, REGION, ("RunMicrovm",), "img#")
    )
    assert [await recall(database, claim(token=token)) for token in "abc"] == [None, "img2#1.0", None]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), PLAIN, max_size=5), st.randoms())
def test_the_order_of_members_does_not_matter_and_every_value_does(parameters: dict[str, Any], random: Any) -> None:
    shuffled = list(parameters.items())
    random.shuffle(shuffled)
    first = idempotency.claim(CALLER, "X", "t", parameters)
    assert idempotency.claim(CALLER, "X", "t", dict(shuffled)) == first
    assert idempotency.claim(CALLER, "X", "t", {**parameters, "added": "x"}) != first or parameters.get("added") == "x"
