"""The cargo: the project as the lab sees it."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

from tools.lab.cargo import ORDER, TAKEN, files_of, write_cargo


def project(root: Path) -> Path:
    for name in TAKEN:
        if "." in name:
            (root / name).write_text(name)
        else:
            (root / name).mkdir()
            (root / name / "file.py").write_text("x = 1\n")
    return root


def test_the_cargo_holds_the_project_and_the_order(tmp_path: Path) -> None:
    root, out = project(tmp_path), tmp_path / "cargo"
    write_cargo(root, {"parts": ["demo"]}, out)
    with tarfile.open(out) as archive:
        names = set(archive.getnames())
        order = archive.extractfile(ORDER)
        assert order is not None
        assert json.loads(order.read()) == {"parts": ["demo"]}
        assert all(entry.uid == 0 for entry in archive)
    assert {"src/file.py", "tests/file.py", "pyproject.toml"} <= names


def test_the_cargo_has_whole_sectors(tmp_path: Path) -> None:
    out = tmp_path / "cargo"
    write_cargo(project(tmp_path), {}, out)
    assert out.stat().st_size % 512 == 0


def test_what_tools_left_in_the_tree_stays_out(tmp_path: Path) -> None:
    root = project(tmp_path)
    for place in ("tests/__pycache__", "tests/sdk/node_modules/aws", "guest/.cache", "src/__pycache__"):
        (root / place).mkdir(parents=True)
        (root / place / "left").write_text("")
    found = {str(path.relative_to(root)) for path in files_of(root) if path.name == "left"}
    # What this Python compiled of the sources spares the lab that work.
    assert found == {"src/__pycache__/left"}
