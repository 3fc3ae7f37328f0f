"""The coverage page is what the code is."""

from __future__ import annotations

from pathlib import Path

from torpor.api.coverage import PAGE, page
from torpor.api.spec import all_operations

ROOT = Path(__file__).resolve().parents[2]


def test_the_coverage_page_is_up_to_date() -> None:
    assert (ROOT / PAGE).read_text() == page(ROOT), "run python -m torpor.api.coverage"


def test_every_operation_is_called_by_a_test_of_its_own() -> None:
    rows = [line for line in page(ROOT).splitlines() if line.startswith("| ") and "/20" in line]
    assert len(rows) == len(all_operations())
    assert [row for row in rows if row.endswith("| – |")] == []
