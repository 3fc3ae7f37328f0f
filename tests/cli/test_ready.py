from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from torpor.ready import DataDirInUse, Service, holder, read_service, sole_use, write_service

SERVICE = Service("http://a", "http://b", 443, "/ca.pem", "us-east-1", "000000000000", "AKIA", "secret", 7)
HOLD = """
import sys, time
from pathlib import Path
from torpor.ready import sole_use
with sole_use(Path(sys.argv[1])):
    child = __import__("subprocess").Popen(["sleep", "60"])
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen[bytes]:
    """A process that holds the directory, and a child of it that does not."""
    return subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)


def test_a_data_directory_is_held_until_its_process_ends_however_it_ends(
        tmp_path: Path, other: subprocess.Popen[bytes]) -> None:  # fmt: skip
    assert other.stdout is not None
    child = int(other.stdout.readline())
    try:
        assert holder(tmp_path) == other.pid
        with pytest.raises(DataDirInUse) as refused, sole_use(tmp_path):
            pass
        assert str(refused.value).endswith(f", process {other.pid}")
        other.kill()
        other.wait()
        other.stdout.close()
        assert holder(tmp_path) is None
        with sole_use(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_nobody_holds_a_directory_that_never_had_a_service(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    assert holder(tmp_path / "absent") is None
    (tmp_path / "file").touch()
    assert holder(tmp_path / "file") is None


def test_the_service_file_is_its_owners_alone_and_reads_back(tmp_path: Path) -> None:
    write_service(SERVICE, tmp_path / "service.json")
    assert stat.S_IMODE((tmp_path / "service.json").stat().st_mode) == 0o600
    assert read_service(tmp_path / "service.json") == SERVICE
    assert [path.name for path in tmp_path.iterdir()] == ["service.json"]


def test_members_that_a_later_release_adds_are_not_in_the_way(tmp_path: Path) -> None:
    write_service(SERVICE, tmp_path / "service.json")
    document = json.loads((tmp_path / "service.json").read_text())
    (tmp_path / "service.json").write_text(json.dumps(document | {"new": 1}))
    assert read_service(tmp_path / "service.json") == SERVICE
