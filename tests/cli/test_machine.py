from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from support.terminal import Torpor, assert_as_expected, on_terminal, plain
from support.world import World
from torpor.cli import machine
from torpor.host.setup.findings import Finding
from torpor.host.setup.progress import Progress
from torpor.model.errors import SetupMissing

FINE = Finding("processor", True, "amd64, 2 CPUs")
ABSENT = Finding("guest kernel", False, "missing", "Run `torpor setup`.")
ALSO_ABSENT = Finding("guest agent", False, "missing", "Run `torpor setup`.")
BETTER = Finding("KVM", False, "there is no [dev]", "Enable it.", is_needed=False)
PORT = Finding("API port", False, "TCP 127.0.0.1:7060: Address already in use", "Choose another.")


def findings(monkeypatch: pytest.MonkeyPatch, *found: Finding) -> None:
    async def examine(_: Any) -> list[Finding]:
        return list(found)

    async def nothing(_: Any) -> list[Finding]:
        return []

    monkeypatch.setattr(machine, "examine", examine)
    monkeypatch.setattr(machine, "check_setup", nothing)
    monkeypatch.setattr(machine, "engine_findings", nothing)


def test_doctor_lists_what_it_found_and_each_remedy_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    findings(monkeypatch, FINE, ABSENT, ALSO_ABSENT, BETTER)
    result = Torpor(tmp_path)("doctor")
    assert result.exit_code == 1
    assert_as_expected("doctor", result.stdout, data=tmp_path)


def test_what_torpor_does_without_is_told_and_is_no_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    findings(monkeypatch, FINE, BETTER)
    shown = json.loads(Torpor(tmp_path).right("doctor", "--json").stdout)
    assert shown[-1] == {"what": "KVM", "ok": False, "needed": False, "detail": "there is no [dev]",
                         "remedy": "Enable it."}  # fmt: skip


def test_ports_that_torpor_itself_has_are_well(monkeypatch: pytest.MonkeyPatch, torpor: Torpor, world: World) -> None:
    findings(monkeypatch, PORT)
    shown = json.loads(torpor.right("doctor", "--json").stdout)
    assert [(each["what"], each["ok"]) for each in shown] == [("service", True), ("leaks", True), ("API port", True)]
    assert shown[0]["detail"] == f"running, process {world.process.pid}"


def test_setup_check_looks_and_changes_nothing(tmp_path: Path) -> None:
    result = Torpor(tmp_path / "absent")("setup", "--check", "--json")
    assert result.exit_code == 1
    assert {"what", "ok", "needed", "detail", "remedy"} == set(json.loads(result.stdout)[0])
    assert not (tmp_path / "absent").exists()


def test_setup_that_fails_says_what_is_missing_and_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def prepare(_: Any, report: Any) -> None:
        report(Progress("kernel", "fetching", 0.5))
        raise SetupMissing("a Go toolchain", "Install it.")

    monkeypatch.setattr(machine, "prepare", prepare)
    result = Torpor(tmp_path)("setup")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[0] == "kernel: fetching"
    assert "Install it." in result.stderr


def test_progress_on_a_terminal_is_a_bar_for_each_step_that_fits_its_width() -> None:
    code = ("from torpor.cli.machine import bars\nfrom torpor.host.setup.progress import Progress\n"
            "with bars() as report:\n"
            "    report(Progress('guest kernel', 'x' * 200, 0.5))\n"
            "    report(Progress('builder [system]', 'installing'))\n"
            "    report(Progress('guest kernel', 'there', is_done=True))\n")  # fmt: skip
    seen = plain(on_terminal([sys.executable, "-c", code], 60, {"TERM": "xterm"}))
    last = [line for line in seen.splitlines() if line.strip()][-2:]
    assert "guest kernel" in last[0]
    assert "there" in last[0]
    assert "builder [system]" in last[1]
    assert all(len(line) <= 60 for line in last)


def test_an_error_of_python_is_one_line_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def prepare(_: Any, __: Any) -> None:
        raise PermissionError(13, "Permission denied", "/some/file")

    monkeypatch.setattr(machine, "prepare", prepare)
    result = Torpor(tmp_path)("setup")
    assert (result.exit_code, result.stderr) == (1, "error: /some/file: Permission denied\n")
