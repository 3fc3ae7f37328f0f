"""The few messages of DNS that are read and written."""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.host.network.dns import (
    A,
    Address,
    Malformed,
    NoAnswer,
    read_addresses,
    read_question,
    write_answer,
    write_question,
)

labels = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=20)
names = st.lists(labels, min_size=1, max_size=6).map(".".join)
addresses = st.lists(st.builds(Address, st.ip_addresses(v=4), st.integers(0, 2**32 - 1)), max_size=8)


@given(st.integers(0, 65535), names)
def test_a_question_is_read_as_it_was_written(number: int, name: str) -> None:
    question = read_question(write_question(number, name))
    assert (question.number, question.name, question.kind) == (number, name, A)


@given(st.integers(0, 65535), names, addresses)
def test_an_answer_holds_the_addresses(number: int, name: str, given_addresses: list[Address]) -> None:
    question = read_question(write_question(number, name))
    answer = write_answer(question, 0, given_addresses)
    assert read_addresses(answer, number, name) == given_addresses
    with pytest.raises(Malformed):
        read_addresses(answer, number ^ 1, name)
    with pytest.raises(Malformed):
        read_addresses(answer, number, name + "x")


@given(st.binary(max_size=600))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        read_question(data)
    with contextlib.suppress(Malformed, NoAnswer):
        read_addresses(data, int.from_bytes(data[:2]), "a.b")


def test_the_case_of_a_question_is_kept_for_the_answer_and_does_not_matter_for_the_name() -> None:
    message = write_question(7, "PyPI.Org".lower()).replace(b"pypi", b"PyPI")
    question = read_question(message)
    assert question.name == "pypi.org"
    assert b"PyPI" in write_answer(question, 0, [])


def test_what_an_answer_says_against_is_told() -> None:
    question = read_question(write_question(7, "a.b"))
    with pytest.raises(NoAnswer) as refused:
        read_addresses(write_answer(question, 3, []), 7, "a.b")
    assert refused.value.code == 3


def test_a_cname_on_the_way_is_passed_over() -> None:
    question = read_question(write_question(7, "a.b"))
    plain = write_answer(question, 0, [Address(IPv4Address("1.2.3.4"), 60)])
    cname = b"\xc0\x0c\x00\x05\x00\x01\x00\x00\x00\x3c\x00\x04\x01x\xc0\x0c"
    head = plain[:6] + b"\x00\x02" + plain[8:12]
    end = 12 + len(question.section)
    assert read_addresses(head + plain[12:end] + cname + plain[end:], 7, "a.b") == [Address(IPv4Address("1.2.3.4"), 60)]


@pytest.mark.parametrize("message", [
    b"\0\1\1\0\0\1\0\0\0\0\0\0\xc0\x0c\0\1\0\1",  # a name that points at itself
    b"\0\1\1\0\0\2\0\0\0\0\0\0\1a\0\0\1\0\1",  # two questions
    b"\0\1\x81\0\0\1\0\0\0\0\0\0\1a\0\0\1\0\1",  # an answer
    b"\0\1\1\0\0\1\0\0\0\0\0\0\1;\0\0\1\0\1",  # a label that is no host's
    b"\0\1\1\0\0\1\0\0\0\0\0\0\1a\0\0\1\0\3",  # another class
])
def test_what_is_no_plain_question_is_malformed(message: bytes) -> None:
    with pytest.raises(Malformed):
        read_question(message)
