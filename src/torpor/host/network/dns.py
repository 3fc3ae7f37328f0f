"""Just enough of DNS (RFC 1035) to answer questions for addresses: nothing of a guest's own bytes is ever sent on."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

A: Final = 1
INTERNET_CLASS: Final = 1
NO_ERROR: Final = 0
SERVER_FAILURE: Final = 2
NO_SUCH_NAME: Final = 3
LARGEST: Final = 4096
_HEADER: Final = struct.Struct("!HHHHHH")
_QUERY: Final = 0x0100
_ANSWER: Final = 0x8180
_RESPONSE_BIT: Final = 0x8000
_OPCODE_BITS: Final = 0x7800
_POINTERS: Final = 16
_ALPHABET: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")


class Malformed(Exception):
    """Not a message this module reads."""


class NoAnswer(Exception):
    """The resolver has not answered, or says that it cannot; `code` is what the guest is told."""

    def __init__(self, code: int) -> None:
        super().__init__(f"response code {code}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Question:
    number: int
    name: str
    """Lower case, without a last dot."""
    kind: int
    section: bytes
    """As it was asked, to be repeated in the answer."""


@dataclass(frozen=True, slots=True)
class Address:
    address: IPv4Address
    ttl: int
    """Seconds."""


def read_question(message: bytes) -> Question:
    """A standard query with one question. Raises Malformed."""
    if len(message) < _HEADER.size:
        raise Malformed("too short")
    number, flags, questions, _, _, _ = _HEADER.unpack_from(message)
    if flags & (_RESPONSE_BIT | _OPCODE_BITS) or questions != 1:
        raise Malformed("not one plain question")
    name, end = _read_name(message, _HEADER.size)
    kind, network = _unpack("!HH", message, end)
    if network != INTERNET_CLASS:
        raise Malformed("not of the internet")
    return Question(number, name, kind, message[_HEADER.size : end + 4])


def write_question(number: int, name: str) -> bytes:
    """A question for the addresses of a name that `read_question` or the configuration gave."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return _HEADER.pack(number, _QUERY, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", A, INTERNET_CLASS)


def read_addresses(message: bytes, number: int, name: str) -> list[Address]:
    """The addresses in an answer to `write_question(number, name)`; CNAMEs on the way are not told.

    Raises:
        Malformed: it is the answer to something else.
        NoAnswer: it says that there is none.
    """
    if len(message) < _HEADER.size:
        raise Malformed("too short")
    answered, flags, questions, answers, _, _ = _HEADER.unpack_from(message)
    if answered != number or not flags & _RESPONSE_BIT or questions != 1:
        raise Malformed("not the answer")
    asked, end = _read_name(message, _HEADER.size)
    if asked != name:
        raise Malformed("the answer to another question")
    if flags & 0xF:
        raise NoAnswer(flags & 0xF)
    end += 4
    found: list[Address] = []
    for _ in range(answers):
        _, end = _read_name(message, end)
        kind, network, ttl, size = _unpack("!HHIH", message, end)
        end += 10
        if end + size > len(message):
            break  # cut off: what there is of it will do
        if kind == A and network == INTERNET_CLASS and size == 4:
            found.append(Address(IPv4Address(message[end : end + 4]), ttl))
        end += size
    return found


def write_answer(question: Question, code: int, addresses: list[Address]) -> bytes:
    header = _HEADER.pack(question.number, _ANSWER | code, 1, len(addresses), 0, 0)
    # 0xC00C points at the name in the question.
    records = b"".join(struct.pack("!HHHIH", 0xC00C, A, INTERNET_CLASS, each.ttl, 4) + each.address.packed
                       for each in addresses)
    return header + question.section + records


def _read_name(message: bytes, at: int) -> tuple[str, int]:
    """The name at an offset and the offset behind it. Raises Malformed."""
    labels: list[bytes] = []
    end: int | None = None
    for _ in range(128 + _POINTERS):
        (length,) = _unpack("!B", message, at)
        if length & 0xC0 == 0xC0:
            (pointer,) = _unpack("!H", message, at)
            end = at + 2 if end is None else end
            if pointer & 0x3FFF >= at:
                raise Malformed("a pointer that does not point back")
            at = pointer & 0x3FFF
        elif length & 0xC0:
            raise Malformed("a label of no known kind")
        elif length == 0:
            name = b".".join(labels)
            if len(name) > 253:
                raise Malformed("a name that is too long")
            return name.decode("ascii"), at + 1 if end is None else end
        else:
            label = message[at + 1 : at + 1 + length].lower()
            if len(label) < length or not _ALPHABET.issuperset(label):
                raise Malformed("a label that is no host's")
            labels.append(label)
            at += 1 + length
    raise Malformed("a name without end")


def _unpack(form: str, message: bytes, at: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(form, message, at)
    except struct.error as error:
        raise Malformed("it ends too soon") from error


class _Asking(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.answers: asyncio.Queue[bytes] = asyncio.Queue(16)

    def datagram_received(self, data: bytes, addr: object) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self.answers.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self.answers.put_nowait(b"")


async def look_up(resolver: str, port: int, name: str, timeout: float = 2.0, tries: int = 2) -> list[Address]:
    """Ask a resolver for the addresses of a name, from this process's own network. Raises NoAnswer."""
    for _ in range(tries):
        try:
            async with asyncio.timeout(timeout):
                return await _ask(resolver, port, name)
        except (TimeoutError, OSError, Malformed):
            continue
    raise NoAnswer(SERVER_FAILURE)


async def _ask(resolver: str, port: int, name: str) -> list[Address]:
    number = secrets.randbelow(1 << 16)
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        _Asking, remote_addr=(resolver, port))
    try:
        transport.sendto(write_question(number, name))
        while True:
            message = await protocol.answers.get()
            if not message:
                raise ConnectionRefusedError(f"no resolver at {resolver}")
            with contextlib.suppress(Malformed):
                return read_addresses(message, number, name)
    finally:
        transport.close()
