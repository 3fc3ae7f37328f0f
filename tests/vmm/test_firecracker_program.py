"""Which Firecracker is taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from torpor.model.errors import SetupMissing
from torpor.vmm.firecracker_program import find_program, untested


def program(folder: Path, says: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "firecracker"
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


def test_the_configured_program_is_taken_before_the_one_in_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_path = program(tmp_path / "bin", "Firecracker v1.13.0")
    monkeypatch.setenv("PATH", f"{in_path.parent}:/usr/bin:/bin")
    own = program(tmp_path / "own", "Firecracker v1.12.1")
    assert find_program(own).path == own
    assert find_program(own).version == (1, 12, 1)
    assert find_program(None).path == in_path


@pytest.mark.parametrize("says", ["Firecracker v1.4.0", "Firecracker v2.0.0"])
def test_an_unknown_version_is_refused_with_the_known_ones(tmp_path: Path, says: str) -> None:
    with pytest.raises(SetupMissing, match=r"1\.12\.0 and later, below 2\.0\.0"):
        find_program(program(tmp_path / "bin", says))


def test_another_program_is_not_taken_for_firecracker(tmp_path: Path) -> None:
    with pytest.raises(SetupMissing, match="is not Firecracker"):
        find_program(program(tmp_path / "bin", "QEMU 7.2"))


def test_a_path_without_a_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupMissing, match="nothing is not there"):
        find_program(tmp_path / "nothing")


def test_a_version_that_the_tests_never_ran_with_says_so() -> None:
    assert untested((1, 12, 0)) == untested((1, 12, 1)) == ""
    assert untested((1, 15, 2)) == "Torpor's tests ran with Firecracker 1.12, not with 1.15.2"
