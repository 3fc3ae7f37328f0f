"""Which events of a PutLogEvents are taken."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.api.cloudwatch.batch import DAY_MS, TOO_NEW_MS, TOO_OLD_MS, sort_out
from torpor.model.errors import Invalid
from torpor.model.logs import PUT_BYTES, PUT_EVENT_BYTES

NOW = 1_800_000_000_000
EDGES = [TOO_OLD_MS, -TOO_NEW_MS, DAY_MS, 10**17]
AGES = st.one_of(st.integers(-3 * TOO_NEW_MS, 3 * TOO_OLD_MS), st.sampled_from(EDGES))


def events(*ages: int) -> list[dict[str, Any]]:
    return [{"timestamp": NOW - age, "message": "m"} for age in ages]


@given(st.lists(AGES, max_size=8), st.sampled_from([None, 1, 7, 30]))
def test_what_is_taken_is_neither_too_old_nor_too_new_and_the_rest_is_told(ages: list[int], days: int | None) -> None:
    given_ = events(*sorted(ages, reverse=True))
    oldest = min(TOO_OLD_MS, (days or 14) * DAY_MS)
    wanted = [each for each in given_ if -TOO_NEW_MS <= NOW - each["timestamp"] <= oldest]
    if wanted and wanted[-1]["timestamp"] - wanted[0]["timestamp"] > DAY_MS:
        with pytest.raises(Invalid, match="cannot span more than 24 hours"):
            sort_out(given_, NOW, days)
        return
    batch = sort_out(given_, NOW, days)
    assert list(batch.events) == wanted
    told = batch.rejected
    begin = max(told.get("tooOldLogEventEndIndex", 0), told.get("expiredLogEventEndIndex", 0))
    assert given_[begin : told.get("tooNewLogEventStartIndex", len(given_))] == wanted
    assert 0 not in (told.get("tooOldLogEventEndIndex", 1), told.get("expiredLogEventEndIndex", 1))


def test_each_kind_of_rejection_has_its_index() -> None:
    batch = sort_out(events(TOO_OLD_MS + 1, 2 * DAY_MS, 5, 0, -TOO_NEW_MS - 1), NOW, 1)
    assert [NOW - each["timestamp"] for each in batch.events] == [5, 0]
    assert batch.rejected == {"tooOldLogEventEndIndex": 1, "expiredLogEventEndIndex": 2, "tooNewLogEventStartIndex": 4}


def test_a_batch_out_of_order_is_refused_whole() -> None:
    with pytest.raises(Invalid, match="chronological order"):
        sort_out(events(0, 1), NOW, None)


@pytest.mark.parametrize("more", [0, 1])
def test_a_batch_counts_26_bytes_for_each_event_and_bytes_of_its_message(more: int) -> None:
    text = "é" * ((PUT_BYTES - 2 * PUT_EVENT_BYTES) // 2)
    given_ = [{"timestamp": NOW, "message": text}, {"timestamp": NOW, "message": "x" * more}]
    if more:
        with pytest.raises(Invalid, match=f"^Upload too large: {PUT_BYTES + 1} bytes exceeds limit of {PUT_BYTES}$"):
            sort_out(given_, NOW, None)
    else:
        assert len(sort_out(given_, NOW, None).events) == 2
