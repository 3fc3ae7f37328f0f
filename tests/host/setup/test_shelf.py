"""The shelf: artefacts by the digest of their inputs, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.host.setup.shelf import Recipe, Shelf

RECIPE = Recipe("kernel", {"version": "1"})

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=5
)
json_objects = st.dictionaries(st.text(), json_values, max_size=5)


@settings(deadline=None)
@given(json_objects)
def test_the_order_of_inputs_does_not_change_the_digest(inputs: dict[str, object]) -> None:
    backwards = dict(reversed(list(inputs.items())))
    assert Recipe("kernel", inputs).digest == Recipe("kernel", backwards).digest


@settings(deadline=None)
@given(json_objects, json_objects)
def test_other_inputs_have_another_digest(one: dict[str, object], other: dict[str, object]) -> None:
    assert (Recipe("kernel", one).digest == Recipe("kernel", other).digest) == (repr_of(one) == repr_of(other))


def repr_of(inputs: dict[str, object]) -> str:
    return json.dumps(inputs, sort_keys=True)


def test_the_kind_is_part_of_the_digest() -> None:
    assert Recipe("kernel", {}).digest != Recipe("agent", {}).digest


def test_a_draft_becomes_the_artefact(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    assert not shelf.has(RECIPE)
    with shelf.draft(RECIPE) as draft:
        (draft / "file").write_text("content")
    assert shelf.has(RECIPE)
    assert (shelf.path(RECIPE) / "file").read_text() == "content"
    assert shelf.latest("kernel") == RECIPE.inputs


def test_a_failed_draft_leaves_nothing(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)

    def write_half() -> None:
        with shelf.draft(RECIPE) as draft:
            (draft / "file").write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert not shelf.has(RECIPE)
    assert list((tmp_path / "kernel").iterdir()) == []


def test_a_shortened_file_makes_the_artefact_missing(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    with shelf.draft(RECIPE) as draft:
        (draft / "file").write_text("content")
    (shelf.path(RECIPE) / "file").write_text("con")
    assert not shelf.has(RECIPE)


def test_one_outdated_artefact_is_kept(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    recipes = [Recipe("kernel", {"version": str(number)}) for number in range(4)]
    for recipe in recipes:
        with shelf.draft(recipe) as draft:
            (draft / "file").write_text("content")
    shelf.prune(recipes[-1])
    assert [shelf.has(recipe) for recipe in recipes] == [False, False, True, True]


def test_an_old_artefact_in_use_again_is_the_latest(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    first, second = (Recipe("kernel", {"version": version}) for version in ("1", "2"))
    for recipe in (first, second):
        with shelf.draft(recipe):
            pass
    assert shelf.latest("kernel") == second.inputs
    shelf.use(first)
    assert shelf.latest("kernel") == first.inputs
