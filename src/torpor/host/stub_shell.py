"""Shells and commands of simulated VMs: a handful of words understood here, and nothing of this machine is run.

With a terminal it echoes, edits the line and knows Ctrl-C and Ctrl-D, as a kernel's terminal does.
"""

from __future__ import annotations

import asyncio
import base64
import shlex
from collections.abc import Callable
from typing import Final

from torpor.host.session import Output, SessionOrder
from torpor.host.simulated_vm import SimulatedVm
from torpor.model.errors import GuestRefused, GuestSilent

PROMPT: Final = "λ $ ".encode()
SHELLS: Final = frozenset({"sh", "bash", "/bin/sh", "/bin/bash"})
WORDS: Final = frozenset({
    "cat", "echo", "env", "exit", "false", "hostname", "ls", "pwd", "stty", "true", "tty", "whoami",
})
INTERRUPTED: Final = 130
_INTERRUPT, _END, _BACKSPACES = 0x03, 0x04, (0x08, 0x7F)


class StubSession:
    """See `Session`."""

    def __init__(self, order: SessionOrder, vm: SimulatedVm, on_close: Callable[[StubSession], None]) -> None:
        words = list(order.args) or ["sh"]
        if words[0] not in SHELLS | WORDS:
            raise GuestRefused("open a session", 422, f"executable file `{words[0]}` not found in $PATH")
        self._order = order
        self._vm = vm
        self._on_close = on_close
        self._written: asyncio.Queue[Output | int | None] = asyncio.Queue()
        self._line = bytearray()
        self._size = (0, 0)
        self._code = 0
        self._is_over = False
        self._reads: str | None = None
        """What takes the input now: `cat`, or the shell itself when None."""
        self._is_shell = words[0] in SHELLS and len(words) == 1
        if self._is_shell:
            self._prompt()
            return
        if words[0] in SHELLS and words[1] == "-c":
            self._run_all(words[2] if len(words) > 2 else "")
        else:
            self._run(words)
        self._end_unless_reading()

    async def read(self) -> Output | int:
        found = await self._written.get()
        if found is None:
            raise GuestSilent("the simulated VM is gone")
        return found

    async def write(self, data: bytes) -> None:
        if self._is_over:
            return
        if not self._order.has_terminal:
            self._take(data)
            return
        for byte in data:
            self._key(byte)

    async def end_input(self) -> None:
        if self._line:
            line, self._line = bytes(self._line), bytearray()
            self._enter(line)
        self._end_of_input()

    async def resize(self, columns: int, rows: int) -> None:
        self._size = (columns, rows)

    async def close(self) -> None:
        self._is_over = True
        self._written.put_nowait(None)
        self._on_close(self)

    def _take(self, data: bytes) -> None:
        if self._reads == "cat":
            self._say(data)
            return
        *lines, rest = (bytes(self._line) + data).split(b"\n")
        self._line = bytearray(rest)
        for line in lines:
            self._enter(line)

    def _key(self, byte: int) -> None:
        if byte == _INTERRUPT:
            self._say(b"^C\r\n")
            self._line.clear()
            self._reads, self._code = None, INTERRUPTED
            self._prompt_or_end()
        elif byte == _END and not self._line:
            self._end_of_input()
        elif byte in _BACKSPACES:
            if self._line:
                del self._line[-1]
                self._say(b"\b \b")
        elif byte in b"\r\n":
            self._say(b"\r\n")
            line, self._line = bytes(self._line), bytearray()
            self._enter(line)
        elif byte >= 0x20:
            self._line.append(byte)
            self._say(bytes([byte]))

    def _enter(self, line: bytes) -> None:
        if self._is_over:
            return
        if self._reads == "cat":
            self._say(line + b"\n")
            return
        self._run_all(line.decode(errors="replace"))
        if self._reads is None:
            self._prompt_or_end()

    def _end_of_input(self) -> None:
        if self._reads is not None:
            self._reads, self._code = None, 0
            self._prompt_or_end()
        else:
            self._exit(self._code)

    def _run_all(self, text: str) -> None:
        for command in text.split(";"):
            if self._is_over:
                return
            try:
                words = shlex.split(command)
            except ValueError as error:
                self._say(f"sh: syntax error: {error}\n".encode(), "stderr")
                self._code = 2
                continue
            if words:
                self._run(words)

    def _run(self, words: list[str]) -> None:
        stream = "stderr" if words[-1] == ">&2" else "stdout"
        name, *given = words[:-1] if stream == "stderr" else words
        self._code = 0
        if name == "exit":
            self._exit(int(given[0]) % 256 if given and given[0].isdecimal() else self._code)
        elif name == "cat" and not given:
            self._reads = "cat"
        elif name not in WORDS:
            self._say(f"sh: 1: {name}: not found\n".encode(), "stderr")
            self._code = 127
        else:
            self._say(self._said_by(name, given), stream)

    def _said_by(self, name: str, given: list[str]) -> bytes:
        columns, rows = self._size
        match name:
            case "false":
                self._code = 1
            case "echo":
                return f"{' '.join(given)}\n".encode()
            case "pwd":
                return f"{self._order.cwd}\n".encode()
            case "whoami":
                return f"{self._order.user or 'root'}\n".encode()
            case "hostname":
                return b"localhost\n"
            case "tty":
                self._code = int(not self._order.has_terminal)
                return b"/dev/pts/0\n" if self._order.has_terminal else b"not a tty\n"
            case "stty" if given == ["size"]:
                return f"{rows} {columns}\n".encode()
            case "env":
                return "".join(f"{key}={value}\n" for key, value in sorted(self._order.environment.items())).encode()
            case "ls" | "cat":
                return self._listed(given or ["/"]) if name == "ls" else self._content(given[0])
        return b""

    def _listed(self, given: list[str]) -> bytes:
        top = given[0].rstrip("/")
        below = {path.removeprefix(f"{top}/").partition("/")[0] for path in self._vm.memory.files
                 if path.startswith(f"{top}/")}  # fmt: skip
        return "".join(f"{name}\n" for name in sorted(below)).encode()

    def _content(self, path: str) -> bytes:
        file = self._vm.memory.files.get(path, {})
        if "data" not in file:
            self._code = 1
            self._say(f"cat: {path}: No such file or directory\n".encode(), "stderr")
            return b""
        return base64.b64decode(file["data"])

    def _say(self, data: bytes, stream: str = "stdout") -> None:
        if self._order.has_terminal:
            stream, data = "stdout", data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        if data:
            self._written.put_nowait(Output(stream, data))

    def _prompt(self) -> None:
        if self._order.has_terminal:
            self._say(PROMPT)

    def _prompt_or_end(self) -> None:
        if self._is_shell and not self._is_over:
            self._prompt()
        else:
            self._end_unless_reading()

    def _end_unless_reading(self) -> None:
        if self._reads is None:
            self._exit(self._code)

    def _exit(self, code: int) -> None:
        if not self._is_over:
            self._is_over = True
            self._written.put_nowait(code)
