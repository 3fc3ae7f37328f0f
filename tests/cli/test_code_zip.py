from __future__ import annotations

import io
import os
import socket
import stat
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.cli.code_zip import zipped
from torpor.cli.ignore import Ignored
from torpor.host.artifact import check

NAMES = st.text("abcxyz._- é", min_size=1, max_size=6).filter(lambda name: name.strip(". ") != "")
TREES = st.dictionaries(NAMES, st.one_of(st.binary(max_size=40), st.dictionaries(NAMES, st.binary(max_size=40))),
                        max_size=5)  # fmt: skip


def write(directory: Path, tree: dict[str, object]) -> None:
    directory.mkdir(exist_ok=True)
    for name, content in tree.items():
        if isinstance(content, dict):
            write(directory / name, content)
        else:
            assert isinstance(content, bytes)
            (directory / name).write_bytes(content)


def names(code: bytes) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(code)).namelist()


def project(directory: Path, *files: str, ignore: str | None = None) -> Path:
    for file in ("Dockerfile", *files):
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        (directory / file).write_text(file)
    if ignore is not None:
        (directory / ".dockerignore").write_text(ignore)
    return directory


@given(TREES)
def test_equal_contents_make_equal_bytes_whatever_their_times_modes_and_order(tree: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        one, other = Path(temporary, "one"), Path(temporary, "other")
        write(one, tree)
        write(other, dict(reversed(tree.items())))
        for path in other.rglob("*"):
            os.utime(path, (1, 1))
            path.chmod(0o700 if path.is_dir() else 0o600)
        assert zipped(one) == zipped(other)


@given(TREES)
def test_what_is_zipped_is_what_the_service_reads(tree: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary), tree | {"Dockerfile": b"FROM x"})
        artifact = check(zipped(Path(temporary)), 10**9)
        for path in Path(temporary).rglob("*"):
            if path.is_file():
                assert artifact.read(path.relative_to(temporary).as_posix()) == path.read_bytes()


def test_only_the_executable_bit_of_a_mode_is_kept(tmp_path: Path) -> None:
    project(tmp_path, "run.sh", "secret")
    (tmp_path / "run.sh").chmod(0o700)
    (tmp_path / "secret").chmod(0o600)
    members = zipfile.ZipFile(io.BytesIO(zipped(tmp_path))).infolist()
    modes = {member.filename: stat.S_IMODE(member.external_attr >> 16) for member in members}
    assert modes == {"Dockerfile": 0o644, "run.sh": 0o755, "secret": 0o644}


def test_links_inside_stay_links_and_empty_directories_stay(tmp_path: Path) -> None:
    project(tmp_path, "a/file")
    (tmp_path / "link").symlink_to("a/file")
    (tmp_path / "folder").symlink_to("a")
    (tmp_path / "empty").mkdir()
    code = zipped(tmp_path)
    assert names(code) == ["Dockerfile", "a/file", "empty/", "folder", "link"]
    links = {entry.name: entry.link for entry in check(code, 10**9).entries if entry.link}
    assert links == {"link": "a/file", "folder": "a"}


def test_a_link_out_of_the_directory_is_refused_before_anything_is_uploaded(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    project(tmp_path)
    (tmp_path / "link").symlink_to("../elsewhere")
    with pytest.raises(SystemExit):
        zipped(tmp_path)
    assert "is a symbolic link out of the directory, to ../elsewhere" in capsys.readouterr().err


def test_sockets_and_pipes_are_left_out(tmp_path: Path) -> None:
    project(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        assert names(zipped(tmp_path)) == ["Dockerfile"]


def test_version_control_caches_and_the_manifest_are_left_out(tmp_path: Path) -> None:
    project(tmp_path, ".git/config", "a/__pycache__/x.pyc", "node_modules/x", ".venv/x", "torpor.toml", "a/torpor.toml")
    assert names(zipped(tmp_path)) == ["Dockerfile", "a/torpor.toml"]


def test_patterns_of_dockerignore_leave_files_out_but_never_the_dockerfile(tmp_path: Path) -> None:
    project(tmp_path, "app.py", "notes.md", "README.md", "data/big", "data/small", "data/deep/big",
            ignore="# comment\n*.md\n!README.md\n/data\n!data/small\nDockerfile\n.dockerignore\n")  # fmt: skip
    assert names(zipped(tmp_path)) == ["Dockerfile", "README.md", "app.py", "data/small"]


def test_torporignore_replaces_dockerignore(tmp_path: Path) -> None:
    project(tmp_path, "one", "two", ignore="one\n")
    (tmp_path / ".torporignore").write_text("two\n")
    assert names(zipped(tmp_path)) == [".dockerignore", "Dockerfile", "one"]


@pytest.mark.parametrize(("pattern", "covered", "free"), [
    ("*.py", "a.py", "b/a.py"), ("**/*.py", "a.py b/a.py b/c/a.py", "a.pyc"), ("a/*/c", "a/b/c a/b/c/d", "a/c a/b/b/c"),
    ("a/**", "a/b a/b/c", "a ab/c"), ("a/**/z", "a/z a/b/z a/b/c/z", "a/b"), ("/a/", "a a/b", "b/a"),
    ("a?c", "abc", "a/c ac"), ("[a-c]x", "ax bx", "dx"), ("[^a]x", "bx", "ax"), ("a.c", "a.c", "abc"),
    (r"\*", "*", "a"), ("[", "[", "a"), ("**", "a a/b", ""),
])  # fmt: skip
def test_patterns_mean_what_they_mean_to_docker(pattern: str, covered: str, free: str) -> None:
    ignored = Ignored([pattern])
    assert [path for path in covered.split() if not ignored.covers(path)] == []
    assert [path for path in free.split() if ignored.covers(path)] == []


@given(st.lists(st.text("ab*?[]!^\\/.-#", max_size=8), max_size=4), st.text("ab/.", min_size=1, max_size=8))
def test_no_pattern_is_an_error(patterns: list[str], path: str) -> None:
    assert Ignored(patterns).covers(path) in (True, False)
