"""A shell at an endpoint, as a client written from AWS's pages has it (spec 7)."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from websockets.exceptions import ConnectionClosed
from websockets.frames import Close
from websockets.sync.client import connect
from websockets.typing import Subprotocol

if TYPE_CHECKING:
    from support.world import Microvm

SHELL_INGRESS = "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:SHELL_INGRESS"
HTTP_INGRESS = SHELL_INGRESS.replace("SHELL_", "HTTP_")
BRACKETED_PASTE = (b"\x1b[?2004l\r", b"\x1b[?2004h")
"""What bash says around what it reads."""
WITH_SHELL: dict[str, Any] = {"ingressNetworkConnectors": [HTTP_INGRESS, SHELL_INGRESS]}


def shell_token(microvm: Microvm, minutes: int = 10) -> str:
    answer = microvm.world.client.create_microvm_shell_auth_token(
        microvmIdentifier=microvm.microvm_id, expirationInMinutes=minutes)
    return str(answer["authToken"]["X-aws-proxy-auth"])


class Shell:
    """One session; use it in a `with`."""

    def __init__(self, microvm: Microvm, token: str | None = None, *, path: str = "/shell",
                 offered: Sequence[str] = ("lambda-microvms.port.8022",)) -> None:  # fmt: skip
        token = token or shell_token(microvm)
        names = [*map(Subprotocol, ("lambda-microvms", f"lambda-microvms.authentication.{token}", *offered))]
        self._connecting = connect(f"wss://{microvm.endpoint}{path}", ssl=microvm.world.tls, subprotocols=names,
                                   proxy=None, open_timeout=60)  # fmt: skip
        self.said = b""
        self.texts: list[str] = []

    def __enter__(self) -> Shell:
        self._socket = self._connecting.__enter__()
        self.subprotocol = self._socket.subprotocol
        self.first: dict[str, Any] = json.loads(self._socket.recv(30))
        return self

    def __exit__(self, *what: Any) -> None:
        self._connecting.__exit__(*what)

    def type(self, text: str | bytes) -> None:
        self._socket.send(text if isinstance(text, bytes) else text.encode(), text=False)

    def send_text(self, text: str) -> None:
        self._socket.send(text)

    def resize(self, columns: int, rows: int) -> None:
        self._socket.send(json.dumps({"type": "resize", "cols": columns, "rows": rows}))

    def until(self, wanted: str, timeout: float = 30) -> str:
        """Read until the terminal has shown it; everything since the last call."""
        deadline = time.monotonic() + timeout
        while wanted.encode() not in self.said:
            assert time.monotonic() < deadline, f"{wanted!r} did not come: {self.said!r}"
            message = self._socket.recv(max(0.01, deadline - time.monotonic()))
            self._keep(message)
        before, _, after = self.said.partition(wanted.encode())
        self.said = after
        return (before + wanted.encode()).decode(errors="replace")

    def _keep(self, message: str | bytes) -> None:
        if isinstance(message, str):
            self.texts.append(message)
            return
        self.said += message
        for mark in BRACKETED_PASTE:
            self.said = self.said.replace(mark, b"")

    def end(self, timeout: float = 30) -> tuple[int, str]:
        """Read to the close; its code and reason."""
        closed: Close | None = None
        while closed is None:
            try:
                message = self._socket.recv(timeout)
            except ConnectionClosed as ended:
                closed = ended.rcvd or Close(1006, "")
                continue
            self._keep(message)
        return closed.code, closed.reason
