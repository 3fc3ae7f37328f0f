"""A machine that cannot make the lab: left out with its name, and a failure where the lab is required."""

from __future__ import annotations

import os

import pytest
from tools import test as runner


@pytest.fixture(autouse=True)
def no_lab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "why_not", lambda: "making the lab's disks needs root")
    monkeypatch.setattr(runner, "_pytest", lambda _arguments: 0)
    monkeypatch.setattr(runner, "_go", lambda: 0)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def test_without_the_lab_tests_go_on_and_say_so(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv(runner.REQUIRE_LAB, raising=False)
    assert runner.main([]) == 0
    assert "left out: Firecracker on KVM, in the lab: making the lab's disks needs root" in capsys.readouterr().out


def test_without_a_lab_that_is_required_they_fail_and_say_why(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TORPOR_REQUIRE_LAB", "1")
    assert runner.main([]) == 1
    assert "FAILED: TORPOR_REQUIRE_LAB=1" in capsys.readouterr().out
