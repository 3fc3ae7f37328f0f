"""Reads which host a connection wants from its first bytes: the SNI of a TLS ClientHello, or the Host of HTTP/1."""

from __future__ import annotations

import re
from typing import Final

ENOUGH: Final = 16 * 1024
"""Bytes; a greeting that is longer is none."""
_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_HOST: Final = re.compile(rb"\r\nhost:[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)", re.IGNORECASE)
_NAME: Final = re.compile(rb"[a-z0-9_.-]{1,253}")


class More(Exception):
    """What has come so far may be the beginning of a greeting."""


def server_name(data: bytes) -> str | None:
    """Of a ClientHello (RFC 8446, 6066), in lower case; None when there is none or it is no TLS. Raises More."""
    hello = _hello(data)
    if hello is None:
        return None
    try:
        return _name_in(_Reader(hello))
    except IndexError:
        return None


def host_header(data: bytes) -> str | None:
    """The one Host of an HTTP/1 request, in lower case, without a port; None when it has none or two. Raises More."""
    head, end, _ = data.partition(b"\r\n\r\n")
    if not end:
        if len(data) >= ENOUGH:
            return None
        raise More
    hosts = _HOST.findall(head + b"\r\n")
    # Two may be read in two ways, and a line that begins with white space goes on with the one before.
    if len(hosts) != 1 or b"\n " in head or b"\n\t" in head or re.search(rb"(?<!\r)\n", head):
        return None
    host = hosts[0].lower()
    return _checked(host.rpartition(b":")[0] if b":" in host else host)


def _hello(data: bytes) -> bytes | None:
    """The handshake message, put together from its records."""
    message, at = b"", 0
    while True:
        if len(data) < at + 5:
            _wait_for_more(data)
            return None
        size = int.from_bytes(data[at + 3 : at + 5])
        if data[at] != _HANDSHAKE or data[at + 1] != 3 or not 0 < size <= 1 << 14:
            return None
        if len(data) < at + 5 + size:
            _wait_for_more(data)
            return None
        message += data[at + 5 : at + 5 + size]
        at += 5 + size
        if message[0] != _CLIENT_HELLO:
            return None
        if len(message) >= 4 and len(message) >= 4 + int.from_bytes(message[1:4]):
            return message[4 : 4 + int.from_bytes(message[1:4])]


def _wait_for_more(data: bytes) -> None:
    if len(data) < ENOUGH and (not data or data[0] == _HANDSHAKE):
        raise More


class _Reader:
    """Raises IndexError where the message ends too soon."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __bool__(self) -> bool:
        return bool(self._data)

    def take(self, size: int) -> bytes:
        if len(self._data) < size:
            raise IndexError
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    def vector(self, length_bytes: int) -> bytes:
        return self.take(int.from_bytes(self.take(length_bytes)))


def _name_in(hello: _Reader) -> str | None:
    hello.take(2 + 32)  # version, random
    hello.vector(1)  # session
    hello.vector(2)  # cipher suites
    hello.vector(1)  # compressions
    extensions = _Reader(hello.vector(2))
    while extensions:
        kind, content = int.from_bytes(extensions.take(2)), extensions.vector(2)
        if kind == _SERVER_NAME:
            names = _Reader(_Reader(content).vector(2))
            while names:
                is_host, name = names.take(1) == b"\0", names.vector(2)
                if is_host:
                    return _checked(name.lower())
    return None


def _checked(name: bytes) -> str | None:
    name = name.removesuffix(b".")
    return name.decode("ascii") if _NAME.fullmatch(name) else None
