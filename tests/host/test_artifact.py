"""A code artifact is a stranger's zip."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.host.artifact import check, write_context
from torpor.model.errors import BuildFailed

GIB = 1024**3


def member(name: str, mode: int = 0o644 | stat.S_IFREG, system: int = 3) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.create_system = system
    made.external_attr = mode << 16
    made.compress_type = zipfile.ZIP_DEFLATED
    return made


def zipped(*files: tuple[zipfile.ZipInfo | str, bytes], dockerfile: bool = True) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        if dockerfile:
            target.writestr(member("Dockerfile"), b"FROM x\n")
        for name, content in files:
            target.writestr(member(name) if isinstance(name, str) else name, content)
    return buffer.getvalue()


def link(name: str, target: str) -> tuple[zipfile.ZipInfo, bytes]:
    return member(name, 0o777 | stat.S_IFLNK), target.encode()


def unpacked(data: bytes) -> dict[str, tarfile.TarInfo]:
    target = io.BytesIO()
    check(data, GIB).write_tar(target)
    target.seek(0)
    with tarfile.open(fileobj=target) as tar:
        return {each.name: each for each in tar.getmembers()}


def test_files_directories_modes_and_links_reach_the_builder() -> None:
    found = unpacked(zipped((member("run.sh", 0o755 | stat.S_IFREG), b"#!"), ("app/main.py", b"print()"),
                            (member("secret", 0o600 | stat.S_IFREG), b"x"), (member("plain", 0), b"x"),
                            (member("empty/", 0o700 | stat.S_IFDIR), b""), link("app/current", "../run.sh")))
    assert {name: oct(each.mode) for name, each in found.items()} == {
        "Dockerfile": "0o644", "run.sh": "0o755", "app/main.py": "0o644", "secret": "0o644", "plain": "0o644",
        "empty": "0o755", "app/current": "0o777",
    }
    assert found["app/current"].linkname == "../run.sh"
    assert found["empty"].isdir()


def test_zips_made_on_dos_have_their_slashes_turned() -> None:
    assert "app/main.py" in unpacked(zipped((member("app\\main.py", 0, system=0), b"x")))


def test_the_context_fills_whole_blocks(tmp_path: Path) -> None:
    write_context(check(zipped(("f", b"x" * 1000)), GIB), tmp_path / "context")
    assert (tmp_path / "context").stat().st_size % 4096 == 0
    with tarfile.open(tmp_path / "context") as tar:
        assert tar.getnames() == ["Dockerfile", "f"]


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "..", "a/..", "/"])
def test_paths_that_leave_the_artifact_are_refused(name: str) -> None:
    with pytest.raises(BuildFailed, match=r"ARCHIVE_INVALID.*outside"):
        check(zipped((name, b"x")), GIB)


@pytest.mark.parametrize("target", ["/etc/passwd", "../x", "a/../../x", "..", ""])
def test_links_that_leave_the_artifact_are_refused(target: str) -> None:
    with pytest.raises(BuildFailed, match=r"ARCHIVE_INVALID.*symbolic link"):
        check(zipped(link("l", target)), GIB)


def test_a_file_under_a_link_is_refused() -> None:
    with pytest.raises(BuildFailed, match="no directory"):
        check(zipped(link("d", "app"), ("d/f", b"x")), GIB)


def test_devices_are_refused() -> None:
    with pytest.raises(BuildFailed, match="neither a file"):
        check(zipped((member("null", 0o666 | stat.S_IFCHR), b"")), GIB)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_is_refused() -> None:
    with pytest.raises(BuildFailed, match="twice"):
        check(zipped(("f", b"1"), ("./f", b"2")), GIB)


def test_a_bomb_is_refused_by_size_and_by_ratio() -> None:
    bomb = zipped(("zeros", b"\0" * 80 * 1024 * 1024))
    with pytest.raises(BuildFailed, match="more than 1000"):
        check(bomb, 1000)
    with pytest.raises(BuildFailed, match="more than 200 times"):
        check(bomb, GIB)


def test_overlapping_entries_are_refused() -> None:
    data = bytearray(zipped(("a", b"1" * 50), ("b", b"2" * 50)))
    first = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", first + 4)
    third = data.index(b"PK\x01\x02", second + 4)
    data[third + 42:third + 46] = data[second + 42:second + 46]  # b's header offset is a's
    with pytest.raises(BuildFailed, match="overlap"):
        check(bytes(data), GIB)


def test_an_encrypted_entry_is_refused() -> None:
    data = bytearray(zipped())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(BuildFailed, match="encrypted"):
        check(bytes(data), GIB)


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\x05\x06" + b"\0" * 17, b"x" * 1000])
def test_what_is_no_zip_is_refused(data: bytes) -> None:
    with pytest.raises(BuildFailed, match=r"ARCHIVE_INVALID.*not a readable zip"):
        check(data, GIB)


def test_a_dockerfile_must_lie_at_the_root() -> None:
    with pytest.raises(BuildFailed, match=r"ARCHIVE_DOCKERFILE_NOT_FOUND.*app/Dockerfile.*zip the content"):
        check(zipped(("app/Dockerfile", b"FROM x"), dockerfile=False), GIB)


def test_content_that_is_not_what_was_promised_is_refused() -> None:
    data = bytearray(zipped(("f", b"hello world, hello world")))
    position = data.index(b"f", data.index(b"FROM") if b"FROM" in data else 40) + 3
    data[position] ^= 0xFF
    with pytest.raises(BuildFailed, match="ARCHIVE_INVALID"):
        check(bytes(data), GIB).write_tar(io.BytesIO())


names = st.lists(st.sampled_from(["a", "b", "..", ".", "", "Dockerfile", "c d", "é"]), min_size=1, max_size=5)


@given(st.lists(st.tuples(names, st.sampled_from([stat.S_IFREG, stat.S_IFLNK, 0])), max_size=6))
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_no_accepted_artifact_names_anything_outside(files: list[tuple[list[str], int]]) -> None:
    data = zipped(*((member("/".join(parts), kind | 0o644), b"../b") for parts, kind in files))
    try:
        found = unpacked(data)
    except BuildFailed:
        return
    for name, each in found.items():
        assert not name.startswith("/")
        assert ".." not in name.split("/")
        assert not each.issym() or "/" in name


@given(st.binary(max_size=400))
def test_no_bytes_at_all_break_the_check(data: bytes) -> None:
    with pytest.raises(BuildFailed):
        check(data, GIB)
