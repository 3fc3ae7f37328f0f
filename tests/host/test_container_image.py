"""What a builder VM says about its image is read with care."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.host.container_image import ContainerImage, layers_above, parse_settings
from torpor.model.errors import BuildFailed, GuestSilent

BASE = ("sha256:base-1", "sha256:base-2")
A, B, C = (letter * 64 for letter in "abc")


def settings(*layers: str, **config: Any) -> bytes:
    return json.dumps({"Docker": {"config": config}, "OCIv1": {"rootfs": {"diff_ids": [*layers]}}}).encode()


def image(*layers: str) -> ContainerImage:
    return ContainerImage(("a",), {}, "/", "", layers)


def storage(parents: dict[str, str], top: str) -> tuple[bytes, bytes, bytes]:
    """An image's id, images.json and layers.json."""
    layers = [{"id": layer, "parent": parent} if parent else {"id": layer} for layer, parent in parents.items()]
    return b"sha256:1234\n", json.dumps([{"id": "1234", "layer": top}]).encode(), json.dumps(layers).encode()


def test_an_image_is_read_as_its_dockerfile_says() -> None:
    read = parse_settings(settings("sha256:x", Entrypoint=["python3"], Cmd=["app.py"], Env=["A=b=c", "E="],
                                   WorkingDir="/app", User="worker"))
    assert read == ContainerImage(("python3", "app.py"), {"A": "b=c", "E": ""}, "/app", "worker", ("sha256:x",))


def test_what_is_not_said_has_a_default() -> None:
    assert parse_settings(settings(Cmd=["a"])) == image()


def test_an_image_that_starts_nothing_is_a_failed_build() -> None:
    with pytest.raises(BuildFailed, match="neither ENTRYPOINT nor CMD"):
        parse_settings(settings("sha256:x", Env=["A=b"]))


@pytest.mark.parametrize("said", [b"", b"[]", b"{}", b"\xff", settings(Cmd="a"), settings(Cmd=[1]),
                                  settings(Cmd=["a"], User=1), b'{"Docker": {"config": {"Cmd": ["a"]}}}'])  # fmt: skip
def test_a_description_that_is_none_is_the_builders_fault(said: bytes) -> None:
    with pytest.raises(GuestSilent):
        parse_settings(said)


def test_the_layers_above_a_base_are_found_the_lowest_first() -> None:
    storing = storage({B: A, A: "of the base", C: "of the base"}, B)
    assert layers_above(BASE, image(*BASE, "sha256:a", "sha256:b"), *storing) == (A, B)


def test_an_image_that_is_its_base_has_none() -> None:
    assert layers_above(BASE, image(*BASE), *storage({}, "of the base")) == ()


@pytest.mark.parametrize("made_of", [
    image("sha256:other", "sha256:base-2", "sha256:a"),  # another base
    image("sha256:base-1", "sha256:a"),  # only a part of it
    image(*BASE),  # the storage has a layer more than the image
    image(*BASE, "sha256:a", "sha256:b"),  # and one less
    image(),
])  # fmt: skip
def test_an_image_of_something_else_has_no_layers_above_it(made_of: ContainerImage) -> None:
    assert layers_above(BASE, made_of, *storage({A: "of the base"}, A)) is None


def test_without_known_layers_nothing_is_above_them() -> None:
    assert layers_above((), image("sha256:a"), *storage({A: ""}, A)) is None


@pytest.mark.parametrize("top", ["../../etc", A.upper(), A[:-1], A + "\n"])
def test_only_ids_become_paths(top: str) -> None:
    assert layers_above(BASE, image(*BASE, "sha256:a"), *storage({top: ""}, top)) is None


def test_a_circle_of_layers_ends() -> None:
    assert layers_above(BASE, image(*BASE, "sha256:a"), *storage({A: B, B: A}, A)) is None


json_values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner:
                           st.lists(inner, max_size=3)
                           | st.dictionaries(st.sampled_from(["id", "parent", "layer", "x"]), inner, max_size=3),
                           max_leaves=8)


documents = json_values.map(json.dumps).map(str.encode) | st.binary()


@given(documents, documents, st.binary(max_size=80))
def test_a_storage_that_is_not_understood_is_no_error(images: bytes, layers: bytes, image_id: bytes) -> None:
    assert layers_above(BASE, image(*BASE, "sha256:a"), image_id, images, layers) is None
