"""Which host a connection wants, from its first bytes."""

from __future__ import annotations

import contextlib
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.host.network.hello import ENOUGH, More, host_header, server_name


def client_hello(name: str | None) -> bytes:
    """What Python's own TLS client sends first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_the_server_name_of_a_real_client_is_read() -> None:
    assert server_name(client_hello("PyPI.org")) == "pypi.org"
    assert server_name(client_hello(None)) is None


@given(st.data())
def test_a_hello_is_read_however_it_is_cut(data: st.DataObject) -> None:
    hello = client_hello("pypi.org")
    cut = data.draw(st.integers(0, len(hello) - 1))
    with pytest.raises(More):
        server_name(hello[:cut])
    # The same message in two records.
    body = hello[5:]
    at = data.draw(st.integers(1, len(body) - 1))
    records = b"".join(b"\x16\x03\x01" + len(part).to_bytes(2) + part for part in (body[:at], body[at:]))
    assert server_name(records) == "pypi.org"


@given(st.binary(max_size=400))
def test_any_bytes_are_a_greeting_or_none(data: bytes) -> None:
    for read in (server_name, host_header):
        with contextlib.suppress(More):
            read(data)
    with contextlib.suppress(More):
        server_name(b"\x16\x03\x01" + len(data).to_bytes(2) + data)


@pytest.mark.parametrize(("head", "host"), [
    (b"GET / HTTP/1.1\r\nHost: PyPI.org\r\n\r\n", "pypi.org"),
    (b"GET / HTTP/1.1\r\nA: b\r\nhost:pypi.org:80\r\nC: d\r\n\r\nbody", "pypi.org"),
    (b"GET / HTTP/1.0\r\n\r\n", None),
    (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", None),
    (b"GET / HTTP/1.1\r\nX: y\r\n Host: b\r\nHost: a\r\n\r\n", None),
    (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", None),
    (b"GET / HTTP/1.1\nHost: a\r\n\r\n", None),
])
def test_the_host_is_read_when_it_is_one_and_plain(head: bytes, host: str | None) -> None:
    assert host_header(head) == host


def test_a_head_without_end_is_waited_for_up_to_a_size() -> None:
    with pytest.raises(More):
        host_header(b"GET / HTTP/1.1\r\nHost: a\r\n")
    assert host_header(b"GET / HTTP/1.1\r\n" + b"x" * ENOUGH) is None
