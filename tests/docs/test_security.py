"""docs/security.md names a test for each claim: those tests exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_that_a_claim_names_exists() -> None:
    page = (ROOT / "docs/security.md").read_text()
    count = 0
    for line in page.splitlines():
        file: Path | None = None
        for path, name in re.findall(r"`(tests/[\w/]+\.py)`|`(test_\w+)`", line):
            if path:
                file = ROOT / path
                assert file.exists(), path
            else:
                assert file is not None, name
                assert re.search(rf"^(async )?def {name}\(", file.read_text(), re.M), f"{file.name} has no {name}"
                count += 1
    assert count > 30
