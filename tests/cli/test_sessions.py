"""`torpor shell`, `exec` and `cp` as people meet them; the application is simulated, the terminal is real."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.terminal import TORPOR, Torpor, assert_as_expected
from support.world import World, eventually

PROMPT = "λ $ "


@pytest.fixture
def open_microvm(torpor: Torpor) -> Iterator[str]:
    """One that has a shell and is woken by who wants it."""
    found = torpor.right("run", "counter", "--shell", "--idle", 300).stdout.strip()
    yield found
    torpor.right("terminate", found)


class Terminal:
    """A program on a terminal that somebody types on."""

    def __init__(self, torpor: Torpor, *words: object, columns: int = 80) -> None:
        self._controller, terminal = pty.openpty()
        self.resize(columns, 24)
        self.before = termios.tcgetattr(terminal)
        self._terminal = terminal
        self.process = subprocess.Popen(
            [*TORPOR, *map(str, words)], env=os.environ | torpor.environment, stdin=terminal, stdout=terminal,
            stderr=terminal, start_new_session=True,
        )
        self._said = b""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._controller, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._controller, text.encode())

    def until(self, wanted: str, timeout: float = 20) -> str:
        deadline = time.monotonic() + timeout
        while wanted.encode() not in self._said:
            assert time.monotonic() < deadline, f"{wanted!r} did not come: {self._said!r}"
            if select.select([self._controller], [], [], 0.05)[0]:
                self._said += os.read(self._controller, 65536)
        before, _, self._said = self._said.partition(wanted.encode())
        return before.decode(errors="replace") + wanted

    def end(self) -> int:
        return self.process.wait(20)

    def is_as_before(self) -> bool:
        return bool(termios.tcgetattr(self._terminal) == self.before)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._controller)
        os.close(self._terminal)


@pytest.fixture
def shell(torpor: Torpor, open_microvm: str) -> Iterator[Terminal]:
    terminal = Terminal(torpor, "shell", open_microvm, columns=101)
    yield terminal
    terminal.close()


def test_a_shell_has_our_terminals_size_and_follows_it(shell: Terminal) -> None:
    shell.until(PROMPT)
    assert not shell.is_as_before()  # raw: every key is the shell's
    shell.type("stty size\r")
    shell.until("\r\n24 101\r\n")
    shell.resize(133, 55)
    os.kill(shell.process.pid, signal.SIGWINCH)
    time.sleep(0.2)
    shell.type("stty size\r")
    shell.until("\r\n55 133\r\n")


def test_ctrl_c_is_the_shells_and_its_exit_code_is_ours(shell: Terminal) -> None:
    shell.until(PROMPT)
    shell.type("cat\r")
    shell.type("\x03")
    shell.until("^C")
    shell.until(PROMPT)
    shell.type("exit 7\r")
    assert shell.end() == 7
    assert shell.is_as_before()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_command_leaves_the_terminal_as_it_was(shell: Terminal, number: int) -> None:
    shell.until(PROMPT)
    os.kill(shell.process.pid, number)
    assert shell.end() == 130
    assert shell.is_as_before()


def test_a_shell_says_so_when_its_microvm_goes(shell: Terminal, torpor: Torpor, open_microvm: str) -> None:
    shell.until(PROMPT)
    torpor.right("suspend", open_microvm)
    shell.until("the microVM is gone")
    assert shell.end() == 1
    assert shell.is_as_before()


def test_a_shell_without_its_connector_is_refused_with_what_to_do(torpor: Torpor, microvm: str) -> None:
    result = torpor("shell", microvm)
    assert result.exit_code == 1
    assert_as_expected("shell-refused", result.stderr)


def run(torpor: Torpor, *words: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*TORPOR, *map(str, words)], env=os.environ | torpor.environment, input=stdin,
                          capture_output=True, timeout=30)  # fmt: skip


def test_exec_passes_streams_apart_and_the_exit_code_on(torpor: Torpor, microvm: str) -> None:
    ended = run(torpor, "exec", microvm, "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, b"out\n", b"err\n")


def test_exec_passes_input_of_any_length_on(torpor: Torpor, microvm: str) -> None:
    sent = os.urandom(3_000_000)
    ended = run(torpor, "exec", microvm, "cat", stdin=sent)
    assert (ended.returncode, ended.stdout == sent, ended.stderr) == (0, True, b"")
    assert run(torpor, "exec", "-n", microvm, "cat", stdin=b"unread").stdout == b""
    words = " ".join([*TORPOR, "exec", microvm, "cat"])
    ended = subprocess.run(["sh", "-c", f"{words} <&-"], env=os.environ | torpor.environment, capture_output=True,
                           timeout=30, check=False)  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


def test_exec_gives_a_terminal_an_environment_a_user_and_a_place(torpor: Torpor, microvm: str) -> None:
    said = torpor.on_terminal("exec", "-t", "-e", "A=b=c", "-u", "web", "-w", "/srv", microvm, "--", "sh", "-c",
                              "tty; env; whoami; pwd")  # fmt: skip
    assert said == "/dev/pts/0\nA=b=c\nweb\n/srv\n"


def test_exec_for_programs_is_one_document(torpor: Torpor, microvm: str) -> None:
    ended = run(torpor, "exec", "--json", microvm, "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    document = json.loads(ended.stdout)
    assert document.pop("seconds") >= 0
    assert (ended.returncode, document) == (3, {"exitCode": 3, "stdout": "out\n", "stderr": "err\n"})


def test_exec_says_what_cannot_be_run(torpor: Torpor, microvm: str) -> None:
    assert b"executable file `nonsense` not found" in run(torpor, "exec", microvm, "nonsense").stderr
    assert run(torpor, "exec", microvm).returncode == 2
    assert b"is no variable" in run(torpor, "exec", "-e", "A", microvm, "env").stderr
    torpor.right("suspend", microvm)
    assert run(torpor, "exec", microvm, "echo", "woken").stdout == b"woken\n"


def test_ctrl_c_ends_a_command_here_and_there(torpor: Torpor, microvm: str) -> None:
    with cat(torpor, microvm) as process:
        process.send_signal(signal.SIGINT)
        assert (process.wait(20), process.communicate()[1]) == (130, b"")


@contextlib.contextmanager
def cat(torpor: Torpor, microvm: str) -> Iterator[subprocess.Popen[bytes]]:
    """A `cat` in the microVM that has begun."""
    pipe = subprocess.PIPE
    with subprocess.Popen([*TORPOR, "exec", microvm, "cat"], env=os.environ | torpor.environment, stdin=pipe,
                          stdout=pipe, stderr=pipe) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"hello\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"hello\n"
        yield process


def test_a_directory_goes_in_and_comes_out_as_it_was(torpor: Torpor, microvm: str, tmp_path: Path) -> None:
    source = tmp_path / "app"
    (source / "bin").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "bin/run").write_bytes(os.urandom(100_000))
    (source / "bin/run").chmod(0o750)
    (source / "link").symlink_to("bin/run")
    assert torpor.right("cp", source, f"{microvm}:/srv/").stderr.startswith("2 files, 97.7 KiB in ")
    document = json.loads(torpor.right("cp", "--json", f"{microvm}:/srv/app", tmp_path / "copy").stdout)
    assert (document["files"], document["sizeInBytes"]) == (2, 100_000)
    assert described(tmp_path / "copy") == described(source)


def described(top: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(top)): (path.lstat().st_mode, path.readlink() if path.is_symlink() else None,
                                     path.read_bytes() if path.is_file() else None)
        for path in sorted(top.rglob("*"))
    }  # fmt: skip


def test_where_a_file_goes_is_as_cp_has_it(torpor: Torpor, microvm: str, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    torpor.right("cp", tmp_path / "one", f"{microvm}:/renamed")
    torpor.right("cp", tmp_path / "one", f"{microvm[:16]}:/made/")
    (tmp_path / "there").mkdir()
    torpor.right("cp", f"{microvm}:/renamed", tmp_path / "there")
    torpor.right("cp", f"{microvm}:/made/one", f"{tmp_path}/new/")
    torpor.right("cp", f"{microvm}:/made/one", tmp_path / "two")
    for path in ("there/renamed", "new/one", "two"):
        assert (tmp_path / path).read_text() == "1"


def test_a_copy_that_cannot_be_is_said_in_one_line(torpor: Torpor, microvm: str, tmp_path: Path) -> None:
    for words, said in {
        (f"{microvm}:/none", tmp_path / "x"): "no such file or directory",
        (tmp_path / "none", f"{microvm}:/x"): f"there is no {tmp_path}/none",
        ("a", "b"): "one of the two must be MICROVM:PATH",
        (tmp_path, f"{microvm}:relative"): "is not absolute",
    }.items():
        result = torpor("cp", *words)
        assert result.exit_code == 1
        assert said in result.stderr
        assert not (tmp_path / "x").exists()


def test_a_command_holds_its_microvm_awake_and_its_end_lets_go(torpor: Torpor, world: World, microvm: str) -> None:
    with cat(torpor, microvm) as process:
        world.pass_time(1000)
        assert state(world, microvm) == "RUNNING"
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(20) == 0
    world.pass_time(290)
    assert state(world, microvm) == "RUNNING"
    world.pass_time(20)
    eventually(lambda: state(world, microvm), lambda found: found == "SUSPENDED")


def state(world: World, microvm: str) -> str:
    return str(world.client.get_microvm(microvmIdentifier=microvm)["state"])
