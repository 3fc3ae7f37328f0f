"""What is kept of log lines, for how long and how much, and how it is found again (spec 9.1)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torpor.store.log_names import directory_of, names_in, remember_name
from torpor.store.logs import LogFiles, Span

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
MUCH = 1 << 40


def us(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000)


def filled(root: Path, days: int = 10, streams: str = "ab") -> LogFiles:
    """A line a day in each stream, each in a segment of its own."""
    files = LogFiles(root, segment_bytes=1)
    for day in range(days):
        for stream in streams:
            files.append("g", stream, [(NOW + day * DAY, "stdout", f"{stream}{day}")])
    return files


def texts(files: LogFiles, group: str = "g") -> list[str]:
    return [line.text for line in files.read(group, None, 0, 10_000)]


def test_lines_older_than_they_are_kept_go_and_a_stream_without_lines_with_them(tmp_path: Path) -> None:
    LogFiles(tmp_path).append("g", "old", [(NOW, "stdout", "alone")])
    files = filled(tmp_path)
    files.sweep(NOW + 10 * DAY, 3 * DAY, MUCH)
    assert texts(files) == ["a7", "b7", "a8", "b8", "a9", "b9"]
    assert files.streams("g") == ["a", "b"]
    files.sweep(NOW + 100 * DAY, 3 * DAY, MUCH)
    assert (texts(files), files.streams("g"), files.groups()) == ([], [], ["g"])
    files.append("g", "a", [(NOW + 100 * DAY, "stdout", "again")])
    assert texts(files) == ["again"]


def test_a_group_may_keep_its_lines_longer_or_shorter(tmp_path: Path) -> None:
    files = filled(tmp_path)
    files.set_retention("g", 5)
    files.sweep(NOW + 10 * DAY, 3 * DAY, MUCH)
    assert texts(files)[0] == "a5"
    facts = files.group_facts("g")
    assert facts is not None
    assert facts.retention_days == 5
    files.set_retention("g", None)
    files.sweep(NOW + 10 * DAY, 3 * DAY, MUCH)
    assert texts(files)[0] == "a7"


def test_of_too_much_the_oldest_goes_first_whosever_it_is(tmp_path: Path) -> None:
    files = filled(tmp_path)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.jsonl"))
    assert files.written == size
    assert files.sweep(NOW + 10 * DAY, 100 * DAY, size) == 0
    assert files.sweep(NOW + 10 * DAY, 100 * DAY, size // 2) > 0
    left = texts(files)
    assert left == [f"{stream}{day}" for day in range(10) for stream in "ab"][-len(left):]
    assert size // 4 < sum(path.stat().st_size for path in tmp_path.rglob("*.jsonl")) <= size // 2
    files.append("g", "a", [(NOW + 11 * DAY, "stdout", "more")])
    assert texts(files)[-1] == "more"


def test_one_large_batch_does_not_make_a_stream_larger_than_it_may_be(tmp_path: Path) -> None:
    files = LogFiles(tmp_path, segment_bytes=1000, segments=3)
    files.append("g", "s", [(NOW, "", f"{number:04} {'x' * 50}") for number in range(1000)])
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.jsonl")) < 3500
    assert texts(files)[-1].startswith("0999")


def test_another_process_sweeps_and_goes_on_where_the_first_was(tmp_path: Path) -> None:
    filled(tmp_path)
    files = LogFiles(tmp_path)
    files.sweep(NOW + 10 * DAY, 3 * DAY, MUCH)
    last = files.append("g", "a", [(NOW, "stdout", "the clock went back")])
    assert last > us(NOW + 9 * DAY)
    assert texts(files)[-1] == "the clock went back"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 100)), max_size=60), st.integers(0, 100),
       st.integers(0, 100), st.integers(1, 20))  # fmt: skip
def test_any_span_is_found_forwards_in_pages_and_backwards(lines: list[tuple[str, int]], start: int, end: int,
                                                           page: int) -> None:  # fmt: skip
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as directory:
        files = LogFiles(Path(directory), segment_bytes=150, segments=1000)
        for number, (stream, second) in enumerate(lines):
            files.append("g", stream, [(NOW + timedelta(seconds=second), "", str(number))])
        begin, stop = us(NOW + timedelta(seconds=start)), us(NOW + timedelta(seconds=end))
        wanted = [str(number) for number, (_, second) in enumerate(lines) if start <= second < end]
        found: list[str] = []
        after = 0
        while lines_found := files.read_span("g", files.streams("g"), Span(after, begin, stop), page):
            found += [line.text for line in lines_found]
            after = lines_found[-1].sequence
        assert found == wanted
        backwards: list[str] = []
        before = None
        while lines_found := files.read_back("g", "a", before, Span(0, begin, stop), page, MUCH):
            backwards = [line.text for line in lines_found] + backwards
            before = lines_found[0].sequence
        assert backwards == [text for text in wanted if lines[int(text)][0] == "a"]


def test_a_stream_tells_its_first_and_last_line(tmp_path: Path) -> None:
    files = filled(tmp_path)
    facts = files.stream_facts("g", "a")
    assert facts is not None
    assert (facts.first_at, facts.last_at) == (NOW, NOW + 9 * DAY)
    files.append("g", "long", [(NOW, "", "x" * 200_000)])
    facts = files.stream_facts("g", "long")
    assert facts is not None
    assert facts.last_at == NOW
    assert files.stream_facts("g", "none") is None
    assert files.group_facts("none") is None


NAMES = ["a", "a~b", "/aws/lambda-microvms/x", "ä" * 300, "x" * 512, "%7E", "~" * 300, "a/" * 256]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_has_a_directory_of_its_own_and_is_read_back_from_it(tmp_path: Path, name: str) -> None:
    for each in (name, f"{name}2"):
        directory = directory_of(tmp_path, each)
        directory.mkdir()
        remember_name(directory, each)
    assert names_in(tmp_path) == sorted([name, f"{name}2"])
