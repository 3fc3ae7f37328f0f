from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.cli.words import age, seconds, short, size

NOW = datetime(2026, 1, 1, tzinfo=UTC)
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}


@pytest.mark.parametrize(("value", "text"), [
    (0, "0.000 s"), (0.1344, "0.134 s"), (0.9996, "1.0 s"), (4.21, "4.2 s"), (119.94, "119.9 s"),
    (119.96, "2 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"), (-1, "0.000 s"),
])  # fmt: skip
def test_durations_are_shown_as_people_say_them(value: float, text: str) -> None:
    assert seconds(value) == text


@given(st.floats(0, 1e7))
def test_a_duration_reads_back_to_within_what_its_unit_shows(value: float) -> None:
    text = seconds(value)
    back: float
    if whole := re.fullmatch(r"(\d+) h (\d\d) min", text):
        back, error = int(whole[1]) * 3600 + int(whole[2]) * 60, 60.5
    elif whole := re.fullmatch(r"(\d+) min (\d\d) s", text):
        back, error = int(whole[1]) * 60 + int(whole[2]), 0.5001
        assert int(whole[2]) < 60
    else:
        back, error = float(text.removesuffix(" s")), 0.0501
    assert abs(back - value) <= error


@given(st.integers(0, 1024**5))
def test_a_size_reads_back_to_within_a_tenth_of_its_unit_and_never_shows_1024(value: int) -> None:
    number, unit = size(value).split()
    assert abs(float(number) * BYTES[unit] - value) <= 0.0501 * BYTES[unit]
    assert float(number) < 1024 or unit == "TiB"


def test_an_unknown_size_is_a_dash() -> None:
    assert size(None) == "-"


@given(st.floats(0, 1e9))
def test_an_age_never_claims_more_than_has_passed(passed: float) -> None:
    text = short(passed)
    shown = int(text[:-1]) * UNITS[text[-1]]
    assert shown <= passed < shown + UNITS[text[-1]]


def test_a_moment_that_lies_ahead_has_no_age() -> None:
    assert age(NOW + timedelta(hours=1), NOW) == "0s"
