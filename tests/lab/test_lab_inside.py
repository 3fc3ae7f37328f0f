"""How a part is run inside the lab."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from tools.lab.inside import run_part
from tools.lab.parts import BY_NAME, CONTRACT_AND_JAIL, END_TO_END, PARTS, QEMU_ON_KVM, REQUIRE, Part

ROOT = Path(__file__).resolve().parents[2]


def part(code: str, timeout: int = 60) -> Part:
    return Part("demo", "a demo", (sys.executable, "-c", code), timeout)


def test_the_exit_code_and_all_output_of_a_part_are_kept(tmp_path: Path) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    assert run_part(part(code), tmp_path) == 3
    assert sorted((tmp_path / "demo.log").read_text().split()) == ["err", "out"]


def test_a_part_that_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    assert run_part(part(code, timeout=1), tmp_path) == 124


def test_a_part_gets_its_environment_beside_that_of_the_lab(
        monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OF_THE_LAB", "kvm")
    code = "import os; print(os.environ['OF_THE_LAB'], os.environ['OF_THE_PART'])"
    shown = Part("demo", "a demo", (sys.executable, "-c", code), 60, {"OF_THE_PART": "qemu"})
    assert run_part(shown, tmp_path) == 0
    assert (tmp_path / "demo.log").read_text() == "kvm qemu\n"


@pytest.mark.parametrize("name", ["firecracker", "qemu"])
def test_tests_of_an_engine_fail_where_it_is_missing(name: str) -> None:
    assert BY_NAME[name].is_pytest
    assert BY_NAME[name].environment[REQUIRE] == name


@pytest.mark.parametrize("word", QEMU_ON_KVM)
def test_each_word_chooses_a_test(word: str) -> None:
    sources = "".join((ROOT / name).read_text() for name in CONTRACT_AND_JAIL)
    assert [name for name in re.findall(r"def (test_\w+)", sources) if word in name]


@pytest.mark.parametrize("word", END_TO_END)
def test_each_word_chooses_an_end_to_end_test(word: str) -> None:
    source = (ROOT / "tests/e2e/test_real.py").read_text()
    assert [name for name in re.findall(r"def (test_\w+)", source) if word in name]


def test_without_a_name_all_parts_run_but_those_that_have_to_be_asked_for() -> None:
    assert [part.name for part in PARTS if part.is_default] == ["firecracker", "demo", "doctor", "qemu"]


def test_every_part_has_a_name_of_its_own_and_a_limit() -> None:
    assert len({part.name for part in PARTS}) == len(PARTS)
    assert all(part.timeout > 0 for part in PARTS)
