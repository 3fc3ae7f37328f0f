"""One database, many readers, one writer at a time.

Each noun has a file of its own with its table and plain functions that take a `Connection`; a caller composes them
into one transaction:

    await database.write(lambda connection: microvms.insert(connection, microvm))

Writes queue for one thread, which commits all that wait together with one fsync, each in a savepoint of its own, so
that a failing one takes nobody with it. A write has returned only when it is durable.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from queue import Empty, SimpleQueue
from threading import Thread, local
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, MetaData, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import QueuePool

from torpor.model.errors import StoreUnavailable

T = TypeVar("T")

metadata: Final = MetaData()
"""All tables; a noun's file adds its own."""

READERS: Final = 2
LARGEST_BATCH: Final = 64
"""Writes that share one commit: more would make the first of them wait for the last."""

PRAGMAS: Final = (
    "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000",
    # 32 MiB, where there is so much: with SQLite's 2 a launch reads pages again as soon as there are thousands of rows.
    "cache_size=-32768",
)  # fmt: skip

_Write = tuple[Callable[[Connection], Any], "Future[Any]"]


class Database:
    """A SQLAlchemy engine with a thread for writes and a few for reads."""

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")
        self._writes: SimpleQueue[_Write | None] = SimpleQueue()
        self._under_way = 0
        self._own = local()
        """The connection of each reading thread."""
        self._reading: list[Connection] = []
        self._writer = Thread(target=self._write_batches, name="store-write", daemon=True)
        self._writer.start()

    @property
    def is_idle(self) -> bool:
        """Nobody waits for a read or a write."""
        return self._under_way == 0

    async def create_tables(self) -> None:
        """Bring the tables to this release's format; see `migrations`.

        Raises:
            FormatTooNew: a later release has been here.
        """
        from torpor.store import migrations  # its file, like every table's, builds on this one

        await self.write(migrations.migrate)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` on a connection whose changes are thrown away. Raises StoreUnavailable."""
        self._under_way += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)
        except OperationalError as error:
            raise StoreUnavailable(f"cannot read the database: {error.orig}") from error
        finally:
            self._under_way -= 1

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction; durable when this returns, and not done at all when it raises.

        Raises:
            StoreUnavailable: the database refused; whatever `work` raises comes out as it is.
        """
        done: Future[T] = Future()
        self._under_way += 1
        self._writes.put((work, done))
        try:
            return await asyncio.wrap_future(done)
        except OperationalError as error:
            raise StoreUnavailable(f"cannot write the database: {error.orig}") from error
        finally:
            self._under_way -= 1

    async def close(self) -> None:
        """Finish the writes that wait, then close."""
        self._writes.put(None)
        await asyncio.to_thread(self._writer.join)
        await asyncio.to_thread(self._readers.shutdown)
        for connection in self._reading:
            connection.close()
        self._engine.dispose()

    def _read(self, work: Callable[[Connection], T]) -> T:
        connection: Connection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = self._engine.connect()
            self._reading.append(connection)
        try:
            return work(connection)
        finally:
            connection.rollback()

    def _write_batches(self) -> None:
        with contextlib.ExitStack() as held:

            @cache
            def connect() -> Connection:
                # One for all batches: fetching it from the pool and giving it back takes as long as a row.
                return held.enter_context(self._engine.connect())

            while True:
                batch = [self._writes.get()]
                with contextlib.suppress(Empty):
                    while len(batch) < LARGEST_BATCH:
                        batch.append(self._writes.get_nowait())
                _commit(connect, [write for write in batch if write is not None])
                if None in batch:
                    return


def _commit(connect: Callable[[], Connection], batch: list[_Write]) -> None:
    outcomes: list[tuple[Future[Any], Any, BaseException | None]] = []
    try:
        connection = connect()
        with connection.begin():
            for work, done in batch:
                if not done.set_running_or_notify_cancel():
                    continue
                try:
                    with _savepoint(connection):
                        outcomes.append((done, work(connection), None))
                except Exception as error:  # belongs to the one who asked, whatever it is
                    outcomes.append((done, None, error))
    except Exception as error:  # the commit itself failed: nobody's work is durable
        failed = {id(done): failure for done, _, failure in outcomes}
        outcomes = [(done, None, failed.get(id(done)) or error) for _, done in batch if not done.cancelled()]
    for done, value, failure in outcomes:
        if failure is None:
            done.set_result(value)
        else:
            done.set_exception(failure)


@contextlib.contextmanager
def _savepoint(connection: Connection) -> Iterator[None]:
    """Undo what was done in it when it raises. By the driver itself, which costs a tenth of SQLAlchemy's nesting."""
    cursor = connection.connection.cursor()
    try:
        cursor.execute("SAVEPOINT one_write")
        try:
            yield
        except BaseException:
            cursor.execute("ROLLBACK TO SAVEPOINT one_write")
            raise
        finally:
            cursor.execute("RELEASE SAVEPOINT one_write")
    finally:
        cursor.close()


def _engine(url: str) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url, pool_size=READERS + 1)
    engine = create_engine(
        url, poolclass=QueuePool, pool_size=READERS + 1, connect_args={"check_same_thread": False, "timeout": 30}
    )

    # The driver's own transaction handling breaks savepoints and starts writes too late
    # (SQLAlchemy documentation, "Serializable isolation / Savepoints / Transactional DDL" of the SQLite dialect).
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine
