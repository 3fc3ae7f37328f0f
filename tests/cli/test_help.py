from __future__ import annotations

from pathlib import Path

import pytest

from support.terminal import EXPECTED, Torpor, assert_as_expected
from torpor.cli.main import COMMANDS


def test_the_command_alone_shows_its_help(tmp_path: Path) -> None:
    assert_as_expected("help", Torpor(tmp_path)("--help").output)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_does(command: str, tmp_path: Path) -> None:
    assert_as_expected(f"help-{command}", Torpor(tmp_path).right(command, "--help").output)


def test_no_help_is_kept_of_a_command_that_is_gone() -> None:
    kept = {file.stem.removeprefix("help-") for file in EXPECTED.glob("help-*.txt")}
    assert kept == set(COMMANDS)


def test_a_mistyped_command_is_answered_with_the_nearest_one(tmp_path: Path) -> None:
    result = Torpor(tmp_path)("terminat")
    assert (result.exit_code, "Did you mean 'terminate'?" in result.stderr) == (2, True)


def test_the_version_is_the_packages(tmp_path: Path) -> None:
    from torpor import __version__

    assert Torpor(tmp_path).right("--version").stdout == f"torpor, version {__version__}\n"
