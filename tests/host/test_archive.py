"""Archives carry sparse files bit for bit, and whatever is changed or cut short is refused."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torpor.host.archive import Reader, Writer, reading, writing
from torpor.model.errors import ArchiveDamaged, TorporError

PIECES = st.dictionaries(st.integers(0, 40), st.binary(min_size=1, max_size=5000), max_size=5)
QUIET = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def nothing(_: int) -> None:
    """Progress that nobody watches."""


def made(path: Path, pieces: dict[int, bytes], size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for block, content in pieces.items():
            file.seek(block * 65536)
            file.write(content)
    return path


def archived(*files: tuple[str, Path]) -> bytes:
    stream = io.BytesIO()
    writer = Writer(stream, {"kind": "test"}, nothing)
    for name, path in files:
        writer.file(name, path)
    writer.end()
    return stream.getvalue()


def extracted(data: bytes, into: Path) -> int:
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir()
    return Reader(io.BytesIO(data), nothing).extract(lambda name: into / name)


@QUIET
@given(PIECES, st.integers(0, 41 * 65536))
def test_what_comes_out_is_what_went_in_and_holes_stay_holes(tmp_path: Path, pieces: dict[int, bytes],
                                                             size: int) -> None:  # fmt: skip
    source = made(tmp_path / "source", pieces, size)
    data = archived(("a/b", source))
    assert extracted(data, tmp_path / "out") == 1
    copy = tmp_path / "out/a/b"
    assert copy.read_bytes() == source.read_bytes()
    assert copy.stat().st_blocks <= source.stat().st_blocks + 16
    assert len(data) < sum(len(each) for each in pieces.values()) + 5000 * (len(pieces) + 1)


@QUIET
@given(st.data())
def test_any_byte_that_changes_and_any_cut_is_refused_or_changes_nothing(tmp_path: Path, data: Any) -> None:
    source = made(tmp_path / "source", {0: b"some content", 3: b"more"}, 4 * 65536)
    whole = archived(("file", source))
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        changed = whole[:at]
    else:
        changed = whole[:at] + bytes([whole[at] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[at + 1 :]
    try:
        extracted(changed, tmp_path / "out")
    except (ArchiveDamaged, UnicodeDecodeError):
        return
    # What can change unnoticed is a name, or what the archive says of itself.
    (found,) = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert found.read_bytes() == source.read_bytes()


def test_another_size_is_refused_though_only_a_hole_grew(tmp_path: Path) -> None:
    whole = archived(("file", made(tmp_path / "source", {0: b"some content"}, 262144)))
    with pytest.raises(ArchiveDamaged, match="its size differs"):
        extracted(whole.replace(b'"size":262144', b'"size":262145', 1), tmp_path / "out")


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", "a//b", "a/", ".", "x\0y", "a/./b"])
def test_no_name_leads_out_of_the_target(tmp_path: Path, name: str) -> None:
    source = made(tmp_path / "source", {0: b"x"}, 10)
    with pytest.raises(ArchiveDamaged, match="impossible name"):
        extracted(archived((name, source)), tmp_path / "out")
    assert not (tmp_path / "x").exists()


def test_a_file_that_is_no_archive_is_said_to_be_none() -> None:
    for data in (b"", b"PK\x03\x04", os.urandom(100)):
        with pytest.raises(ArchiveDamaged, match="not an archive of Torpor"):
            Reader(io.BytesIO(data), nothing)


@pytest.mark.parametrize("compression", ["none", "zstd", "auto"])
def test_files_are_written_whole_or_not_at_all_compressed_or_not(tmp_path: Path, compression: str) -> None:
    if compression == "zstd" and shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    source, target = made(tmp_path / "source", {0: b"x" * 5000}, 10 << 20), tmp_path / "archive"
    with writing(target, compression) as stream:
        writer = Writer(stream, {"kind": "test"}, nothing)
        writer.file("file", source)
        assert not target.exists()
        writer.end()
    assert target.stat().st_mode & 0o777 == 0o600
    with reading(target) as stream:
        reader = Reader(stream, nothing)
        assert reader.about == {"kind": "test"}
        assert reader.extract(lambda name: tmp_path / "out" / name) == 1
    assert (tmp_path / "out/file").read_bytes() == source.read_bytes()
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "never", compression) as stream:
        stream.write(b"x" * (1 // 0))
    assert [path.name for path in tmp_path.iterdir() if "never" in path.name] == []


def test_a_compressed_archive_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    if shutil.which("zstd") is None:
        pytest.skip("zstd is not installed")
    target = tmp_path / "archive"
    source = made(tmp_path / "source", {n: os.urandom(60_000) for n in range(20)}, 2 << 20)
    with writing(target, "zstd") as stream:
        writer = Writer(stream, {"kind": "test"}, nothing)
        writer.file("file", source)
        writer.end()
    os.truncate(target, target.stat().st_size // 2)
    with pytest.raises(TorporError, match="ends early"), reading(target) as stream:
        Reader(stream, nothing).extract(lambda name: tmp_path / "out" / name)
