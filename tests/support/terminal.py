"""The `torpor` command as people meet it: run in this process, as a program, or on a terminal of a given width."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

from click.testing import CliRunner, Result

from torpor.cli import main

TORPOR = [sys.executable, "-m", "torpor.cli"]
EXPECTED = Path(__file__).resolve().parents[1] / "cli/expected"
UPDATE = "TORPOR_UPDATE_EXPECTED"
"""Set it to write the expected files anew; the difference is then reviewed with the change that made it."""


class Torpor:
    """Commands against one data directory."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.environment = {"TORPOR_DATA_DIR": str(data_dir), "TERM": "xterm-256color"}

    def __call__(self, *words: object, stdin: str | None = None) -> Result:
        """Run a command in this process; an exception that is not an exit is the test's failure."""
        result = CliRunner().invoke(main, [str(word) for word in words], input=stdin, env=self.environment,
                                    prog_name="torpor")  # fmt: skip
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def right(self, *words: object, stdin: str | None = None) -> Result:
        result = self(*words, stdin=stdin)
        assert result.exit_code == 0, result.output
        return result

    def start(self, *words: object) -> subprocess.Popen[bytes]:
        """Run it as a program."""
        return subprocess.Popen([*TORPOR, *map(str, words)], env=os.environ | self.environment,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip

    def program(self, *words: object) -> subprocess.CompletedProcess[str]:
        """Run it as a program to its right end."""
        return subprocess.run([*TORPOR, *map(str, words)], env=os.environ | self.environment, check=True, timeout=60,
                              capture_output=True, text=True)  # fmt: skip

    def on_terminal(self, *words: object, columns: int = 80, environment: dict[str, str] | None = None) -> str:
        """All that it writes to a terminal of so many columns."""
        return on_terminal([*TORPOR, *map(str, words)], columns, self.environment | (environment or {}))


def on_terminal(argv: list[str], columns: int, environment: dict[str, str]) -> str:
    """All that a program writes to a terminal of so many columns."""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    known = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(argv, env=known | environment, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    written = b""
    with contextlib.suppress(OSError):  # EIO: nobody holds the terminal any more
        while chunk := os.read(controller, 65536):
            written += chunk
    os.close(controller)
    process.wait(20)
    return written.decode().replace("\r\n", "\n")


def plain(text: str) -> str:
    """Without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def assert_as_expected(name: str, text: str, **masked: object) -> None:
    """Compare with the kept file; `masked` values are written as their names, ids and durations as what they are."""
    for mask, value in masked.items():
        text = text.replace(str(value), f"<{mask}>")
    text = re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<uuid>", text)
    text = re.sub(r"\b\d+\.\d+ s\b", "<seconds>", text)
    text = re.sub(r"\bprocess \d+", "process <pid>", text)
    text = re.sub(r"\.localhost:\d+", ".localhost:<port>", text)
    text = re.sub(r"\b127\.0\.0\.1:\d+", "127.0.0.1:<port>", text)
    file = EXPECTED / f"{name}.txt"
    if os.environ.get(UPDATE):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text(), f"{file} differs; if that is right, run the test again with {UPDATE}=1"
