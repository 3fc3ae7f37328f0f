"""Cursors (spec 1.8)."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.control.paging import Cursors, Position, page_size
from torpor.model.errors import Invalid
from torpor.model.paging import PageRequest

CURSORS = Cursors(b"k" * 32)
POSITIONS = st.builds(Position, st.integers(0, 2**62), st.text(max_size=64))


@given(POSITIONS, st.text())
def test_a_cursor_is_read_as_it_was_written(position: Position, scope: str) -> None:
    cursor = CURSORS.write(scope, position)
    assert CURSORS.read(PageRequest(cursor=cursor), scope) == position
    assert re.fullmatch(r"[A-Za-z0-9_-]+=*", cursor)
    assert len(cursor) % 4 == 0  # padded, as AWS's are


@given(POSITIONS, st.data())
def test_a_cursor_with_any_letter_changed_is_refused_without_a_text(position: Position, data: st.DataObject) -> None:
    cursor = CURSORS.write("list", position)
    at = data.draw(st.integers(0, len(cursor.rstrip("=")) - 2))
    other = data.draw(st.sampled_from("ABCxyz019-_=%+").filter(lambda letter: letter != cursor[at]))
    with pytest.raises(Invalid) as refused:
        CURSORS.read(PageRequest(cursor=cursor[:at] + other + cursor[at + 1 :]), "list")
    assert refused.value.message is None


@given(st.text(max_size=4000))
def test_any_other_text_is_refused_without_a_text(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        CURSORS.read(PageRequest(cursor=text), "list")
    assert refused.value.message is None


def test_a_cursor_of_another_list_or_service_is_refused() -> None:
    cursor = PageRequest(cursor=CURSORS.write("list a", Position(1, "x")))
    for cursors, scope in ((CURSORS, "list b"), (Cursors(b"other"), "list a")):
        with pytest.raises(Invalid):
            cursors.read(cursor, scope)


@given(st.lists(st.integers(), unique=True, max_size=40), st.integers(1, 10))
def test_pages_hold_every_item_once_and_end_without_a_cursor(items: list[int], size: int) -> None:
    ordered = sorted((abs(item), str(item)) for item in items)
    seen: list[tuple[int, str]] = []
    request = PageRequest(size)
    while True:
        after = CURSORS.read(request, "list")
        found = [item for item in ordered if after is None or item > after.key][: size + 1]
        page = CURSORS.page(request, "list", found, size, lambda item: Position(*item))
        seen += page.items
        if page.cursor is None:
            break
        assert len(page.items) == size
        request = PageRequest(size, page.cursor)
    assert seen == ordered


def test_a_page_has_fifty_items_unless_fewer_are_asked_for() -> None:
    """Spec 10.1."""
    assert [page_size(PageRequest(count)) for count in (None, 1, 50, 100)] == [50, 1, 50, 50]
    assert page_size(PageRequest(100), 100) == 100
