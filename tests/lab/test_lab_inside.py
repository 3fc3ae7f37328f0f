"""How a part is run inside the lab."""

from __future__ import annotations

import sys
from pathlib import Path

from tools.lab.inside import run_part
from tools.lab.parts import PARTS, Part


def part(code: str, timeout: int = 60) -> Part:
    return Part("demo", "a demo", (sys.executable, "-c", code), timeout)


def test_the_exit_code_and_all_output_of_a_part_are_kept(tmp_path: Path) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    assert run_part(part(code), tmp_path) == 3
    assert sorted((tmp_path / "demo.log").read_text().split()) == ["err", "out"]


def test_a_part_that_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    assert run_part(part(code, timeout=1), tmp_path) == 124


def test_every_part_has_a_name_of_its_own_and_a_limit() -> None:
    assert len({part.name for part in PARTS}) == len(PARTS)
    assert all(part.timeout > 0 for part in PARTS)
