"""What the host reads in a Dockerfile before buildah does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.host.dockerfile import base_of, mapped_names

PIECES = ["FROM ", "from a AS b", "$x", "${", "ARG x=", "\\", "\n", "a:1"]
IMAGES = {"public.example/lambda/minimal:1": "torpor/python:3.11"}


@pytest.mark.parametrize(("dockerfile", "base"), [
    ("FROM torpor/python:3.11\nRUN true\n", "localhost/torpor/python:3.11"),
    ("# a comment\n\n  from torpor/python:3.11 \n", "localhost/torpor/python:3.11"),
    ("FROM --platform=linux/arm64 torpor/debian:12 AS final", "localhost/torpor/debian:12"),
    ("FROM \\\n  torpor/debian:12\n", "localhost/torpor/debian:12"),
    ("FROM torpor/debian:12\r\nRUN a\r\n", "localhost/torpor/debian:12"),
    ("FROM public.example/lambda/minimal:1", "localhost/torpor/python:3.11"),
    ("FROM a:1 AS build\nFROM b:2\nCOPY --from=build / /", "localhost/b:2"),
    ("FROM a:1 AS Build\nFROM b:2 as other\nFROM build\n", "localhost/a:1"),
    ("FROM a:1 AS one\nFROM one AS two\nFROM two", "localhost/a:1"),
    ("FROM a:1 AS a:1\nFROM a:1", "localhost/a:1"),
    ("ARG BASE=torpor/python\nARG TAG='3.11'\nFROM $BASE:${TAG}", "localhost/torpor/python:3.11"),
    ("FROM ${BASE:-torpor/python:3.11}", "localhost/torpor/python:3.11"),
    ("FROM a\nARG BASE=b\nFROM $BASE", None),
    ("FROM scratch", "localhost/scratch:latest"),
    ("FROM a@sha256:0000", None),
    ("RUN true\n", None),
    ("", None),
])  # fmt: skip
def test_the_base_of_the_last_stage_is_found(dockerfile: str, base: str | None) -> None:
    assert base_of(dockerfile, IMAGES) == base


@given(st.text() | st.lists(st.sampled_from(PIECES)).map("".join))
def test_no_dockerfile_is_too_strange(dockerfile: str) -> None:
    found = base_of(dockerfile, IMAGES)
    assert found is None or ":" in found


def test_only_names_that_a_dockerfile_can_mean_are_mapped() -> None:
    asked = next(iter(IMAGES))
    assert mapped_names(f"FROM {asked}\n", IMAGES) == [(asked, "torpor/python:3.11")]
    assert mapped_names("FROM torpor/debian:12\n", IMAGES) == []
    assert mapped_names("ARG B=x\nFROM ${B}\n", IMAGES) == [*IMAGES.items()]
