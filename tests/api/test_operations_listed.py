"""The list of what is missing may only shrink."""

from __future__ import annotations

from pathlib import Path

from torpor.api.operations import OPERATIONS
from torpor.api.spec import all_operations

MISSING = Path(__file__).with_name("missing_operations.txt")


def test_every_operation_is_implemented_or_listed_as_missing() -> None:
    missing = sorted(set(all_operations()) - OPERATIONS.keys())
    assert missing == MISSING.read_text().split()


def test_no_operation_is_implemented_that_the_models_do_not_have() -> None:
    assert OPERATIONS.keys() <= set(all_operations())
