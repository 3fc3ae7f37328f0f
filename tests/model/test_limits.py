"""The bucket that meters a rate (spec 10.1)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from torpor.model.limits import Rate, TokenBucket

RATES = st.builds(Rate, st.floats(0.1, 1000), st.floats(1, 100))


@given(RATES, st.lists(st.floats(0, 10), max_size=60))
def test_no_more_pass_than_the_burst_and_what_the_time_refilled(rate: Rate, pauses: list[float]) -> None:
    bucket, now, passed = TokenBucket(rate, 0.0), 0.0, 0
    for pause in pauses:
        now += pause
        passed += bucket.take(now) is None
        assert passed <= rate.burst + now * rate.per_second + 1e-6


@given(RATES)
def test_a_full_bucket_lets_its_burst_pass_at_once(rate: Rate) -> None:
    bucket = TokenBucket(rate, 0.0)
    # A billionth of a token short is a token: what was refilled in many steps is not exact.
    assert sum(bucket.take(0.0) is None for _ in range(200)) == int(rate.burst + 1e-9)


@given(RATES)
def test_whoever_waits_as_told_passes(rate: Rate) -> None:
    bucket = TokenBucket(rate, 0.0)
    wait = None
    while wait is None:
        wait = bucket.take(0.0)
    assert bucket.take(wait.total_seconds() + 1e-5) is None


@given(RATES, st.floats(0, 100))
def test_a_clock_that_goes_backwards_gives_nothing(rate: Rate, back: float) -> None:
    bucket = TokenBucket(rate, 100.0)
    while bucket.take(100.0) is None:
        pass
    assert bucket.take(100.0 - back) is not None
