from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.edge.shells import size_in

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)


@pytest.mark.parametrize(("text", "size"), [
    ('{"type":"resize","cols":80,"rows":24}', (80, 24)), ('{"rows":0,"cols":0,"type":"resize"}', (0, 0)),
    ('{"type":"resize","cols":80}', None), ('{"type":"resize","cols":true,"rows":24}', None),
    ('{"type":"resize","cols":65536,"rows":24}', None), ('{"type":"resize","cols":-1,"rows":24}', None),
    ('{"type":"ping"}', None), ("ls -l\n", None), ("{", None), ("[" * 100_000, None), ('{"a":' * 100_000, None),
])  # fmt: skip
def test_only_a_resize_is_a_control_frame(text: str, size: tuple[int, int] | None) -> None:
    assert size_in(text) == size


@given(st.dictionaries(st.sampled_from(["type", "cols", "rows", "x"]), SCALARS | st.just("resize")))
def test_whatever_text_comes_is_a_size_or_typed(frame: dict[str, Any]) -> None:
    found = size_in(json.dumps(frame))
    assert found is None or (frame["type"] == "resize" and found == (frame["cols"], frame["rows"]))
