"""What VMMs write into their run directories for as long as they live."""

from __future__ import annotations

from pathlib import Path

from torpor.vmm.outputs import OUTPUTS, empty_large

LARGEST = 64 * 1024


def test_what_has_grown_large_is_emptied_and_nothing_else(tmp_path: Path) -> None:
    for name in (*OUTPUTS, "vmm.json"):
        (tmp_path / name).write_bytes(b"x" * 2 * LARGEST)
    (tmp_path / "console").write_bytes(b"few words")
    assert empty_large(tmp_path, LARGEST) == [tmp_path / name for name in OUTPUTS if name != "console"]
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes == dict.fromkeys(OUTPUTS, 0) | {"console": 9, "vmm.json": 2 * LARGEST}
    assert empty_large(tmp_path, LARGEST) == []


def test_a_file_that_is_large_by_its_hole_alone_is_left(tmp_path: Path) -> None:
    with (tmp_path / "vmm.log").open("wb") as file:
        file.truncate(100 * LARGEST)
        file.seek(0, 2)
        file.write(b"the end")
    assert empty_large(tmp_path, LARGEST) == []


def test_a_vmm_without_these_files_is_none_of_its_business(tmp_path: Path) -> None:
    assert empty_large(tmp_path / "gone", LARGEST) == []
