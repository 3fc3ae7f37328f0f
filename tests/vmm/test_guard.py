"""An open for writing that is answered with a descriptor for reading."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from torpor.vmm import guard, kernel
from torpor.vmm.guard import answer_open, hold_opens
from torpor.vmm.process import Launch, in_namespace, spawn

NAME = Path("/nowhere/at/all")
OPENS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print("first", libc.open(b"/dev/null", os.O_RDWR) > 2)
fd = libc.open(b"/nowhere/at/all", os.O_RDWR)
print("read", os.read(fd, 5))
try:
    os.write(fd, b"mine")
except OSError as error:
    print("write", error.strerror)
print("other", os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC) > 2)
print("again", libc.open(b"/dev/null", os.O_RDWR))
"""


def start(tmp_path: Path, code: str) -> tuple[int, int]:
    held: list[int] = []

    def enter() -> None:
        kernel.become(os.geteuid(), 0)
        held.append(hold_opens())

    launch = Launch([sys.executable, "-c", code], {"PATH": "/usr/bin:/bin"}, tmp_path / "log", ())
    return in_namespace(None, lambda: spawn(launch, enter)), held[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change groups")
def test_the_program_reads_what_it_meant_to_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("theirs")
    pid, listener = start(tmp_path, OPENS)
    answer_open(listener, NAME, tmp_path / "file")
    os.close(listener)
    _, code = os.waitpid(pid, 0)
    said = (tmp_path / "log").read_text().splitlines()
    assert code == 0, said
    assert said == ["first True", "read b'their'", "write Bad file descriptor", "other True", "again -1"]
    assert (tmp_path / "file").read_text() == "theirs"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change groups")
def test_a_program_that_ends_before_it_opens_anything_is_not_waited_for(tmp_path: Path) -> None:
    pid, listener = start(tmp_path, "raise SystemExit(3)")
    answer_open(listener, NAME, Path("/dev/null"))
    os.close(listener)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change groups")
def test_a_program_that_opens_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "ANSWERED_WITHIN", 0.1)
    pid, listener = start(tmp_path, "import time; time.sleep(60)")
    with pytest.raises(TimeoutError):
        answer_open(listener, NAME, Path("/dev/null"))
    os.close(listener)
    os.kill(pid, 9)
    os.waitpid(pid, 0)


INTERRUPTED = """
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
signal.signal(signal.SIGALRM, lambda *_: None)
signal.siginterrupt(signal.SIGALRM, True)
signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0002)
def open_it(name):
    while True:
        fd = libc.open(name, os.O_RDWR)
        if fd >= 0 or ctypes.get_errno() != 4:
            return fd
for _ in range(100):
    if open_it(b"/dev/null") < 0:
        print("lost", ctypes.get_errno())
        break
fd = open_it(b"/nowhere/at/all")
signal.setitimer(signal.ITIMER_REAL, 0)
print("read", os.read(fd, 5) if fd >= 0 else ctypes.get_errno())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change groups")
def test_an_open_that_a_signal_interrupts_is_answered_when_it_is_asked_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("theirs")
    pid, listener = start(tmp_path, INTERRUPTED)
    answer_open(listener, NAME, tmp_path / "file")
    os.close(listener)
    os.waitpid(pid, 0)
    assert (tmp_path / "log").read_text().splitlines() == ["read b'their'"]
