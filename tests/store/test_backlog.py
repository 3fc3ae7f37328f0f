"""What waits to be forwarded: exactly the lines on disk that have not been delivered; those that went are counted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from torpor.store import forwarded
from torpor.store.backlog import Backlog, Key
from torpor.store.database import Database
from torpor.store.logs import LogFiles, Span

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = ("g", "s")
MUCH = 1 << 40


def watched(root: Path, positions: dict[Key, int] | None = None, since: int | None = 0,
            **options: int) -> tuple[LogFiles, Backlog]:  # fmt: skip
    backlog = Backlog()
    backlog.begin(positions or {}, since)
    return LogFiles(root, backlog=backlog, **options), backlog


def write(files: LogFiles, *texts: str, stream: str = "s", at: datetime = NOW) -> int:
    return files.append("g", stream, [(at, "stdout", text) for text in texts])


def unsent(files: LogFiles, backlog: Backlog, key: Key = KEY) -> list[str]:
    span = backlog.span(key)
    if span is None:
        return []
    return [line.text for line in files.read_span(key[0], [key[1]], Span(span[0] - 1), 10_000)]


def test_what_is_written_waits_until_it_is_settled(tmp_path: Path) -> None:
    files, backlog = watched(tmp_path)
    assert (len(backlog), backlog.oldest()) == (0, None)
    first = write(files, "a", "b")
    second = write(files, "c")
    assert backlog.oldest_first() == [KEY]
    backlog.settled(KEY, first)
    assert unsent(files, backlog) == ["c"]
    backlog.settled(KEY, second)
    assert len(backlog) == 0
    write(files, "d")
    assert unsent(files, backlog) == ["d"]


def test_the_stream_with_the_oldest_line_comes_first(tmp_path: Path) -> None:
    files, backlog = watched(tmp_path)
    for stream in ("b", "c", "a"):
        write(files, "x", stream=stream)
    last = write(files, "y", stream="b")
    assert [stream for _, stream in backlog.oldest_first()] == ["b", "c", "a"]
    backlog.settled(("g", "b"), last - 1)
    assert [stream for _, stream in backlog.oldest_first()] == ["c", "a", "b"]


def test_another_process_finds_what_the_first_had_not_sent(tmp_path: Path) -> None:
    files, _ = watched(tmp_path)
    sent = write(files, "a", stream="s")
    write(files, "b", stream="s")
    done = write(files, "c", stream="done")
    write(files, "d", stream="new")
    again, backlog = watched(tmp_path, {KEY: sent, ("g", "done"): done, ("g", "away"): 7})
    assert again.load() > 0
    assert unsent(again, backlog) == ["b"]
    assert unsent(again, backlog, ("g", "new")) == ["d"]
    assert unsent(again, backlog, ("g", "done")) == []
    assert backlog.take_gone() == {("g", "away")}
    assert backlog.take_gone() == set()


def test_at_the_very_first_start_nothing_that_is_there_is_to_be_sent(tmp_path: Path) -> None:
    files, _ = watched(tmp_path)
    write(files, "old")
    again, backlog = watched(tmp_path, since=None)
    since = again.load()
    assert len(backlog) == 0
    write(again, "new")
    assert unsent(again, backlog) == ["new"]
    later, backlog = watched(tmp_path, since=since)
    later.load()
    assert unsent(later, backlog) == ["new"]


def test_lines_that_rotation_removes_unsent_are_counted(tmp_path: Path) -> None:
    files, backlog = watched(tmp_path, segment_bytes=1000, segments=3)
    last = 0
    for number in range(100):
        last = write(files, f"{number}")
    settled = [line for line in files.read("g", "s", 0, 10_000) if line.text == "95"]
    assert backlog.lost == int(unsent(files, backlog)[0])
    backlog.settled(KEY, settled[0].sequence)
    before = backlog.lost
    for number in range(100, 103):
        last = write(files, f"{number}")
    assert backlog.lost == before
    backlog.settled(KEY, last)
    for number in range(200):
        last = write(files, f"{number}")
        backlog.settled(KEY, last)
    assert backlog.lost == before


def test_lines_that_retention_removes_unsent_are_counted_and_the_stream_is_gone(tmp_path: Path) -> None:
    files, backlog = watched(tmp_path)
    write(files, "a", "b", "c")
    # Before anything was appended, as at a start: the sweep looks first at what there is.
    again, backlog = watched(tmp_path)
    again.sweep(NOW + timedelta(days=31), timedelta(days=30), MUCH)
    assert (backlog.lost, len(backlog)) == (3, 0)
    assert backlog.take_gone() == {KEY}


def test_lines_on_their_way_are_lost_only_if_they_do_not_arrive(tmp_path: Path) -> None:
    for arrives in (True, False):
        files, backlog = watched(tmp_path / str(arrives))
        last = write(files, "a", "b")
        backlog.sending(KEY, last)
        files.sweep(NOW + timedelta(days=31), timedelta(days=30), MUCH)
        assert backlog.lost == 0
        if arrives:
            backlog.settled(KEY, last)
        else:
            backlog.failed(KEY)
        assert (backlog.lost, len(backlog)) == (0 if arrives else 2, 0)


def test_what_somebody_deletes_is_not_lost(tmp_path: Path) -> None:
    files, backlog = watched(tmp_path)
    write(files, "a", stream="s")
    write(files, "b", stream="t")
    files.delete("g", "s")
    assert (backlog.lost, backlog.oldest_first()) == (0, [("g", "t")])
    files.delete("g")
    assert (backlog.lost, len(backlog), backlog.take_gone()) == (0, 0, {("g", "s"), ("g", "t")})


@given(st.lists(st.one_of(
    st.tuples(st.just("write"), st.integers(1, 30)), st.tuples(st.just("send"), st.integers(1, 40)),
    st.tuples(st.just("fail"), st.integers(1, 40)), st.tuples(st.just("restart"), st.just(0)),
), max_size=60))  # fmt: skip
def test_every_line_is_delivered_once_lost_or_waits(steps: list[tuple[str, int]]) -> None:
    with TemporaryDirectory() as directory:
        root, sent, lost, position, written = Path(directory), [], 0, 0, 0
        files, backlog = watched(root, segment_bytes=300, segments=3)
        for what, count in steps:
            if what == "write":
                write(files, *(str(written + number) for number in range(count)))
                written += count
            elif what == "restart":
                lost += backlog.lost
                files, backlog = watched(root, {KEY: position} if position else {}, segment_bytes=300, segments=3)
                files.load()
            elif (span := backlog.span(KEY)) is not None:
                lines = files.read_span("g", ["s"], Span(span[0] - 1), count)
                backlog.sending(KEY, lines[-1].sequence)
                if what == "fail":
                    backlog.failed(KEY)
                else:
                    sent += [line.text for line in lines]
                    position = lines[-1].sequence
                    backlog.settled(KEY, position)
        waiting = unsent(files, backlog)
        assert sent == sorted(set(sent), key=int)
        assert len(sent) + lost + backlog.lost + len(waiting) == written
        assert sent + waiting == sorted({*sent, *waiting}, key=int)


def test_a_long_segment_is_not_read_from_its_beginning(tmp_path: Path) -> None:
    files = LogFiles(tmp_path, segment_bytes=1 << 30)
    last = files.append("g", "s", [(NOW, "", f"{number}" + "x" * (number % 97)) for number in range(20_000)])
    for after in (0, last - 19_999, last - 12_345, last - 1, last, last + 10):
        found = [line.text.rstrip("x") for line in files.read("g", "s", after, 3)]
        number = max(0, 20_000 - (last - after))
        assert found == [str(each) for each in range(number, min(number + 3, 20_000))]


def test_a_line_that_a_full_disk_cut_harms_no_other(tmp_path: Path) -> None:
    files, _ = watched(tmp_path)
    write(files, "a")
    [segment] = tmp_path.rglob("*.jsonl")
    with segment.open("ab") as file:
        file.write(b'[9999999999999999,1,"stdo\n')
    write(files, "b")
    again, backlog = watched(tmp_path)
    again.load()
    assert unsent(again, backlog) == ["a", "b"]
    assert [line.text for line in again.read("g", "s", 0, 10)] == ["a", "b"]


async def test_positions_are_kept_replaced_and_forgotten(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'torpor.db'}")
    await database.create_tables()
    assert await database.read(forwarded.read) == ({}, None)
    await database.write(lambda connection: forwarded.begin(connection, 5))
    await database.write(lambda connection: forwarded.save(connection, {KEY: 7, ("g", "t"): 8}, []))
    await database.write(lambda connection: forwarded.save(connection, {KEY: 9}, [("g", "t"), ("g", "never")]))
    assert await database.read(forwarded.read) == ({KEY: 9}, 5)
    await database.close()
