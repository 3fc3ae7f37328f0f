"""A microVM comes back from the store as it went in, whatever it holds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine

from torpor.model.hooks import Hook, Hooks
from torpor.model.ids import AccountId, EndpointLabel, MicrovmId
from torpor.model.microvm import IdlePolicy, Microvm, MicrovmState
from torpor.store import journal, microvms
from torpor.store.database import Database, metadata
from torpor.store.journal import Entry

moments = st.datetimes(datetime(2020, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
spans = st.timedeltas(timedelta(0), timedelta(days=1))
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
made = st.builds(
    Microvm, st.uuids().map(lambda u: MicrovmId(f"microvm-{u}")), st.just(AccountId("0")), st.just("r"), texts, texts,
    st.uuids().map(lambda u: EndpointLabel(str(u))), st.sampled_from(MicrovmState), st.none() | texts, moments,
    st.none() | moments, spans, st.none() | st.builds(IdlePolicy, spans, spans, st.booleans()), st.none() | texts,
    st.lists(texts).map(tuple), st.lists(texts).map(tuple), moments, st.none() | moments,
    st.none() | st.dictionaries(texts, texts), st.none() | texts, st.integers(1, 8192), texts,
    st.builds(Hooks, st.none() | st.integers(1, 65535), st.dictionaries(st.sampled_from(Hook), spans)),
    st.none() | st.integers(-255, 255), st.none() | moments, st.booleans(),
)


@settings(deadline=None)
@given(made)
def test_a_record_comes_back_whole(microvm: Microvm) -> None:
    engine = create_engine("sqlite://")
    with engine.begin() as connection:
        metadata.create_all(connection)
        microvms.insert(connection, microvm)
        assert microvms.get(connection, microvm.microvm_id) == microvm
        microvms.change(connection, microvm.microvm_id, {"state": MicrovmState.TERMINATED, "state_reason": "Success."})
        changed = replace(microvm, state=MicrovmState.TERMINATED, state_reason="Success.")
        assert microvms.get(connection, microvm.microvm_id) == changed
        assert microvms.live(connection) == []
    engine.dispose()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'torpor.db'}")
    await opened.create_tables()
    yield opened
    await opened.close()


async def test_what_is_fixed_at_birth_cannot_be_changed(database: Database) -> None:
    with pytest.raises(ValueError, match="image_arn"):
        await database.write(lambda connection: microvms.change(connection, MicrovmId("m"), {"image_arn": "x"}))


async def test_a_journal_entry_comes_back_as_far_as_it_has_come(database: Database) -> None:
    entry = Entry("1", "microvm-1", "launch", "somebody", {"payload": "ä"}, datetime(2026, 1, 1, tzinfo=UTC))
    await database.write(lambda connection: journal.insert(connection, entry))
    further = replace(entry, step=2, results={"restore": {"address": "a"}}, times=(("restore", 0.5),), failure="no")
    await database.write(lambda connection: journal.update(connection, further))
    assert await database.read(journal.unfinished) == [further]
    await database.write(lambda connection: journal.delete(connection, "1"))
    assert await database.read(journal.unfinished) == []
