"""The files of audit records: only ever appended to, read backwards, dropped whole."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from torpor.store.audit import AuditFiles

NOW = datetime(2026, 1, 10, tzinfo=UTC)


def encoded(number: int, padding: int = 0) -> bytes:
    return json.dumps({"n": number, "p": "x" * padding}).encode()


def numbers(files: AuditFiles) -> list[int]:
    return [record["n"] for _, record in files.newest_first()]


@given(st.lists(st.integers(0, 600_000), max_size=8), st.integers(1, 900_000))
def test_records_of_any_length_come_back_newest_first_and_from_any_place(paddings: list[int], file_bytes: int) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as directory:
        files = AuditFiles(Path(directory), file_bytes=file_bytes)
        for number, padding in enumerate(paddings):
            files.append(f"2026-01-0{1 + number // 3}", [encoded(number, padding)])
        wanted = list(range(len(paddings)))[::-1]
        assert numbers(files) == wanted
        for index, (place, _) in enumerate(files.newest_first()):
            assert [record["n"] for _, record in files.newest_first(place)] == wanted[index + 1:]


def test_a_torn_record_is_skipped_and_spoils_none(tmp_path: Path) -> None:
    files = AuditFiles(tmp_path)
    files.append("2026-01-01", [encoded(1)])
    (path,) = tmp_path.iterdir()
    with path.open("ab") as file:
        file.write(b'{"n": 2, "half')
    files.append("2026-01-01", [encoded(3)])
    assert numbers(files) == [3, 1]
    assert path.stat().st_mode & 0o777 == 0o600


def test_old_days_go_and_then_the_oldest_until_there_is_room(tmp_path: Path) -> None:
    files = AuditFiles(tmp_path)
    for day in range(1, 10):
        files.append(f"2026-01-0{day}", [encoded(day, 1000)])
    files.sweep(NOW, timedelta(days=5), 1 << 30)
    assert numbers(files) == [9, 8, 7, 6, 5]
    files.sweep(NOW, timedelta(days=5), 2500)
    assert numbers(files) == [9, 8]
    files.sweep(NOW + timedelta(days=100), timedelta(days=5), 0)
    assert numbers(files) == [9]
