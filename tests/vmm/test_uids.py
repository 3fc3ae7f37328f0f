"""User ids that no two VMMs share."""

from __future__ import annotations

import os

import pytest

from torpor.vmm.uids import Uids


def test_ids_are_handed_out_once_until_they_come_back() -> None:
    uids = Uids(first=1_950_000_000, count=3)
    taken = {uids.take() for _ in range(3)}
    assert len(taken) == 3
    with pytest.raises(LookupError, match="all 3"):
        uids.take()
    uids.give_back(min(taken))
    uids.give_back(min(taken))
    assert uids.take() == min(taken)


def test_an_adopted_id_is_taken() -> None:
    uids = Uids(first=1_950_000_000, count=2)
    uids.hold(1_950_000_001)
    assert uids.take() == 1_950_000_000


def test_the_user_of_a_living_process_is_never_handed_out() -> None:
    uids = Uids(first=os.geteuid(), count=2)
    assert uids.take() == os.geteuid() + 1
