"""Commands and copies in a microVM by the commands, the same on every engine."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from support.terminal import TORPOR
from support.world import World

pytestmark = pytest.mark.timeout(300)
IDLE = {"maxIdleDurationSeconds": 60, "suspendedDurationSeconds": 3600, "autoResumeEnabled": True}


def run(world: World, *words: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*TORPOR, *map(str, words)], env=os.environ | {"TORPOR_DATA_DIR": str(world.data_dir)},
                          input=stdin, capture_output=True, timeout=120)  # fmt: skip


def test_a_command_has_its_streams_its_input_and_its_exit_code(world: World) -> None:
    with world.microvm() as vm:
        ended = run(world, "exec", vm.microvm_id, "--", "sh", "-c", "echo out; echo err >&2; exit 3")
        assert (ended.returncode, ended.stdout, ended.stderr) == (3, b"out\n", b"err\n")
        sent = os.urandom(2_000_000)
        ended = run(world, "exec", vm.microvm_id, "cat", stdin=sent)
        assert (ended.returncode, ended.stdout == sent, ended.stderr) == (0, True, b"")
        assert b"not found" in run(world, "exec", vm.microvm_id, "no-such-command").stderr


def test_a_command_runs_in_the_applications_container_as_whom_it_is_told(world: World) -> None:
    with world.microvm() as vm:
        said = [run(world, "exec", "-e", "A=b", "-w", "/tmp", vm.microvm_id, "--", *words).stdout.decode().split()
                for words in (["whoami"], ["pwd"], ["env"])]  # fmt: skip
        assert said[0] == ["root"]
        assert said[1] == ["/tmp"]
        assert "A=b" in said[2]
        if world.engine != "simulated":
            assert "FROM_DOCKERFILE=yes" in said[2]
            assert run(world, "exec", "-u", "runner", vm.microvm_id, "whoami").stdout == b"runner\n"
            assert run(world, "exec", vm.microvm_id, "cat", "/built-by-run").stdout == b"built\n"


def test_a_directory_goes_in_and_comes_out_and_survives_a_sleep(world: World, tmp_path: Path) -> None:
    source = tmp_path / "app"
    (source / "bin").mkdir(parents=True)
    (source / "bin/run").write_bytes(content := os.urandom(300_000))
    (source / "bin/run").chmod(0o750)
    (source / "link").symlink_to("bin/run")
    with world.microvm(idlePolicy=IDLE) as vm:
        ended = run(world, "cp", "--json", source, f"{vm.microvm_id}:/srv/")
        assert json.loads(ended.stdout)["files"] == 2, ended.stderr
        vm.suspend()
        ended = run(world, "cp", f"{vm.microvm_id}:/srv/app", tmp_path / "copy")
        assert ended.returncode == 0, ended.stderr
        assert (tmp_path / "copy/bin/run").read_bytes() == content
        assert (tmp_path / "copy/bin/run").stat().st_mode & 0o777 == 0o750
        assert (tmp_path / "copy/link").readlink() == Path("bin/run")
        assert b"no such file" in run(world, "cp", f"{vm.microvm_id}:/none", tmp_path / "x").stderr
