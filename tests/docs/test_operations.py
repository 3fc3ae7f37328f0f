from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from configparser import RawConfigParser
from dataclasses import fields, is_dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from torpor.cli.main import COMMANDS
from torpor.config import Config

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/operations.md").read_text()
UNIT = ROOT / "packaging/torpor.service"


def settings(of: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in fields(of):
        value = getattr(of, field.name)
        if is_dataclass(value):
            yield from settings(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def documented() -> dict[str, str]:
    section = PAGE.split("\n## Settings\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `([\w.]+)` \| (.*?) \|", section, flags=re.M))


def test_every_setting_is_documented_and_no_other() -> None:
    assert list(documented()) == [name for name, _ in settings(Config())]


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, v in settings(Config()) if v not in (None, {}, [])])
def test_the_documented_default_is_the_settings_default(name: str, value: Any) -> None:
    if isinstance(value, dict):
        assert all(each in documented()[name] for each in value.values())
        return
    shown = f"{value.total_seconds():.0f}" if isinstance(value, timedelta) else (
        str(value).lower() if isinstance(value, bool) else str(value))  # fmt: skip
    assert documented()[name].strip("`") == shown


def test_every_command_named_exists() -> None:
    for page in (ROOT / "README.md", ROOT / "docs/operations.md"):
        named = set(re.findall(r"(?<![/\w.])torpor ([a-z][a-z-]+)(?=[ `\n])", page.read_text()))
        assert named <= set(COMMANDS) | {"command"}, page.name


def test_the_unit_leaves_virtual_machines_alone_and_their_files_where_they_are() -> None:
    unit = RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(UNIT)
    service = dict(unit["Service"])
    assert service["KillMode"] == "process"
    assert service["ExecStart"].endswith("/torpor up")
    assert not {"PrivateTmp", "ProtectSystem", "ProtectHome", "RuntimeDirectory", "PrivateMounts"} & service.keys()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / "torpor.service"
    copy.write_text(UNIT.read_text().replace("/opt/torpor/bin/torpor", "/bin/true"))
    ended = subprocess.run(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(copy)],
                           capture_output=True, text=True, timeout=30)  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, "")
