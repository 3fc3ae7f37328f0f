"""The host's time stamp counter."""

from __future__ import annotations

import platform

import pytest

from torpor.vmm.tsc import tsc_khz


@pytest.mark.skipif(platform.machine() != "x86_64", reason="no such counter")
def test_the_counter_is_measured_alike_twice() -> None:
    first, second = tsc_khz(), tsc_khz()
    assert first is not None
    assert second is not None
    assert abs(first - second) / first < 0.01
