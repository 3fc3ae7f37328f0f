"""The initramfs archive, read back by cpio itself."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from torpor.host.setup.cpio import Archive


def written() -> bytes:
    out = io.BytesIO()
    archive = Archive(out)
    archive.add_file(PurePosixPath("usr/bin/tool"), b"#!", 0o755)
    archive.add_file(PurePosixPath("usr/bin/other"), b"four")
    archive.add_link(PurePosixPath("lib/name"), "../usr/bin/tool")
    archive.finish()
    return out.getvalue()


def test_the_same_files_make_the_same_bytes() -> None:
    assert written() == written()


@pytest.mark.skipif(shutil.which("cpio") is None, reason="cpio is not installed")
def test_cpio_reads_what_was_written(tmp_path: Path) -> None:
    subprocess.run(["cpio", "-i", "--quiet", "-d"], input=written(), cwd=tmp_path, check=True)
    assert (tmp_path / "usr/bin/tool").read_bytes() == b"#!"
    assert (tmp_path / "usr/bin/tool").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "lib/name").resolve() == (tmp_path / "usr/bin/tool").resolve()
    assert (tmp_path / "usr/bin/other").read_bytes() == b"four"
