"""The whole of a Torpor as one file: records, keys, code artifacts, images and what sleeps."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
from sqlalchemy import create_engine

from torpor import __version__
from torpor.cli.options import machine_options, settings
from torpor.cli.output import err, fail, json_option, print_json
from torpor.cli.transfer import compress_option, data_bytes, progress, removed_afterwards, stage_name
from torpor.cli.words import seconds, size
from torpor.config import Config
from torpor.folders import CA, OBJECTS, SIMULATED
from torpor.host.archive import Reader, Writer, reading, writing
from torpor.host.exports import facts, why_not
from torpor.host.files import sync_directory
from torpor.host.layout import Layout, MicrovmFiles
from torpor.host.setup.volume import is_volume_ready, make_volume, volume_path
from torpor.host.snapshots import Maker, read_manifest
from torpor.model.errors import ArchiveDamaged, SnapshotDamaged
from torpor.ready import holder, named, sole_use
from torpor.store.known import Known, known

DATABASE: Final = "torpor.db"
KEPT: Final = (CA, OBJECTS, SIMULATED)
"""Directories of the data directory that go along as they are."""
DRAFT: Final = "restore.draft"
FORMAT: Final = 1
TRIES: Final = 5
"""A microVM that wakes and sleeps again while its files are linked gets another look."""


@click.command(short_help="Write everything into one file.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option("--without-microvms", is_flag=True, help="Images and records alone; sleeping microVMs are left out.")
@compress_option
@machine_options
@json_option
def backup(file: Path, without_microvms: bool, compress: str, data_dir: Path | None, config: Path | None,
           as_json: bool) -> None:  # fmt: skip
    """Write records, keys, code artifacts, images and suspended microVMs into FILE; - is standard output.

    The service may run: what is written is how it stood when the command began. A microVM that runs is in it as it was
    suspended last, if it ever was. The file holds keys and the memory of applications: keep it as you keep them.
    """
    chosen = settings(config, data_dir=data_dir)
    if as_json and str(file) == "-":
        raise click.UsageError("--json goes with a file, not with standard output.")
    if chosen.database is not None:
        fail("the database is not SQLite", "Use its own backup for the records, and torpor export for images.")
    if not (chosen.data_dir / DATABASE).exists():
        fail(f"there is no database in {chosen.data_dir}", "Name the right data directory with --data-dir.")
    started = time.monotonic()
    with _staged(chosen, with_microvms=not without_microvms) as (stage, about):
        places = [stage, *(chosen.data_dir / name for name in KEPT)]
        about["dataBytes"] = data_bytes(*places)
        with progress("backing up", about["dataBytes"]) as on_bytes, writing(file, compress) as stream:
            archive = Writer(stream, about, on_bytes)
            for name in KEPT:
                _add_what_stays(archive, name, chosen.data_dir / name)
            archive.directory("volume", stage / "volume")
            archive.file(DATABASE, stage / DATABASE)
            archive.end()
    if str(file) == "-":
        return
    written, took = file.stat().st_size, time.monotonic() - started
    if as_json:
        print_json({"file": str(file), "bytes": written, "images": about["images"], "microvms": about["microvms"],
                    "seconds": round(took, 3)})  # fmt: skip
    else:
        err.print(f"backed up {about['images']} image versions and {about['microvms']} microVMs to {file}, "
                  f"{size(written)}, after {seconds(took)}", markup=False)  # fmt: skip


@click.command(short_help="Bring back what backup wrote.")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True))
@machine_options
@json_option
def restore(file: Path, data_dir: Path | None, config: Path | None, as_json: bool) -> None:
    """Bring FILE back into a data directory that has no records yet; - is standard input.

    Everything is read and compared with its checksums before anything is in its place. Never run two Torpors from one
    backup: both would wake the same microVMs.
    """
    chosen = settings(config, data_dir=data_dir)
    if (process := holder(chosen.data_dir)) is not None:
        fail(f"Torpor runs with the data directory {chosen.data_dir}, {named(process)}",
             "torpor down, or name another with --data-dir.")  # fmt: skip
    started = time.monotonic()
    chosen.data_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    with sole_use(chosen.data_dir), reading(file) as stream, progress("restoring", None) as on_bytes:
        _refuse_full(chosen)
        try:
            archive = Reader(stream, on_bytes)
            _refuse_foreign(archive.about)
            _restore(chosen, archive)
        except ArchiveDamaged as error:
            fail(f"{file}: {error}", "Nothing was restored.")
    took = time.monotonic() - started
    found = {name: archive.about.get(name) for name in ("images", "microvms", "exportedAt")}
    if as_json:
        print_json({**found, "seconds": round(took, 3)})
    else:
        err.print(f"restored {found['images']} image versions and {found['microvms']} microVMs as of "
                  f"{found['exportedAt']} after {seconds(took)}: torpor up", markup=False)  # fmt: skip


@contextlib.contextmanager
def _staged(config: Config, *, with_microvms: bool) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The database as it stands, and links to all files that it speaks of, in a stage."""
    layout = Layout(volume_path(config), config.data_dir)
    parent = layout.exports if layout.snapshots.is_dir() else config.data_dir / SIMULATED / "exports"
    stage = parent / stage_name()
    with removed_afterwards(stage):
        stage.mkdir(mode=0o700, parents=True)
        _copy_database(config.data_dir / DATABASE, stage / DATABASE)
        now = _known(stage / DATABASE)
        (stage / "volume").mkdir()
        makers = [_link_snapshot(layout.snapshots / name, stage / "volume/snapshots" / name) for name in now.snapshots]
        ids = [str(each) for each in now.microvms if with_microvms]
        linked = [_link_latest(layout, each, stage / "volume/microvms" / each) for each in ids]
        simulated = [each for each in ids if (config.data_dir / SIMULATED / f"microvms/{each}.saved.json").exists()]
        maker = next((each for each in makers if each is not None), Maker("", "", ""))
        yield stage, {
            "format": FORMAT, "kind": "backup", "release": __version__, "facts": facts(maker),
            "exportedAt": datetime.now(UTC).isoformat(timespec="seconds"), "images": len(now.snapshots),
            "microvms": sum(linked) + len(simulated),
        }  # fmt: skip


def _copy_database(source: Path, target: Path) -> None:
    """SQLite's own way to copy a database that somebody writes to."""
    with contextlib.closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as opened, contextlib.closing(
            sqlite3.connect(target)) as copy:  # fmt: skip
        opened.backup(copy)
    target.chmod(0o600)


def _known(database: Path) -> Known:
    engine = create_engine(f"sqlite:///{database}")
    try:
        with engine.connect() as connection:
            return known(connection)
    finally:
        engine.dispose()


def _link_snapshot(source: Path, target: Path) -> Maker | None:
    """Links to a directory's files; None when it is not there. Raises FileNotFoundError when it goes meanwhile."""
    if not source.is_dir():
        return None
    target.mkdir(mode=0o700, parents=True)
    for path in source.iterdir():
        os.link(path, target / path.name)
    try:
        return read_manifest(target).maker
    except SnapshotDamaged:
        return None


def _link_latest(layout: Layout, microvm_id: str, target: Path) -> bool:
    """Whether the microVM has a saved generation, which is linked then."""
    for _ in range(TRIES):
        latest = MicrovmFiles(layout.microvms / microvm_id).latest()
        if latest is None:
            return False
        try:
            return _link_snapshot(latest, target / latest.name) is not None
        except FileNotFoundError:  # replaced by a newer one
            shutil.rmtree(target, ignore_errors=True)
    return False


def _add_what_stays(archive: Writer, name: str, place: Path) -> None:
    """Files of a directory that others may change meanwhile: those that go are left out."""
    for path in sorted(place.rglob("*")) if place.is_dir() else ():
        inside = path.relative_to(place).as_posix()
        if path.is_file() and not path.is_symlink() and not inside.startswith("exports/"):
            with contextlib.suppress(FileNotFoundError):
                archive.file(f"{name}/{inside}", path)


def _refuse_full(config: Config) -> None:
    if (config.data_dir / DATABASE).exists():
        fail(f"there are records in {config.data_dir} already", "Move it away, or name another with --data-dir.")


def _refuse_foreign(about: dict[str, Any]) -> None:
    if about.get("kind") != "backup" or about.get("format") != FORMAT:
        fail("this is no backup, or one of a later release", "An image or a microVM: torpor import.")
    made = about.get("facts", {})
    here = facts(Maker(str(made.get("engine")), str(made.get("acceleration")), ""))
    if (reason := why_not(made, here)) is not None:
        fail(f"its microVMs cannot run here: {reason}", "Restore it on a machine of the same processor family.")


def _restore(config: Config, archive: Reader) -> None:
    draft = config.data_dir / DRAFT
    shutil.rmtree(draft, ignore_errors=True)
    layout = Layout(volume_path(config), config.data_dir)
    with contextlib.ExitStack() as stack:
        stage = stack.enter_context(removed_afterwards(layout.exports / stage_name()))
        stack.enter_context(removed_afterwards(draft))
        has_volume = False

        def place(name: str) -> Path:
            nonlocal has_volume
            first, _, inside = name.partition("/")
            if first == "volume" and inside.partition("/")[0] in ("snapshots", "microvms"):
                if not has_volume:
                    has_volume = True
                    _make_volume(config, stage)
                return stage / inside
            if first in KEPT or name == DATABASE:
                return draft / name
            raise ArchiveDamaged("the archive has a file that belongs to no backup")

        archive.extract(place)
        if not (draft / DATABASE).exists():
            raise ArchiveDamaged("the archive has no database")
        for kind, parent in (("snapshots", layout.snapshots), ("microvms", layout.microvms)):
            _put(stage / kind, parent)
        for name in KEPT:
            if (draft / name).is_dir():
                shutil.rmtree(config.data_dir / name, ignore_errors=True)
                (draft / name).replace(config.data_dir / name)
        # Last: without it there is nothing here, and the next try begins anew.
        (draft / DATABASE).replace(config.data_dir / DATABASE)
        sync_directory(config.data_dir)


def _make_volume(config: Config, stage: Path) -> None:
    if not is_volume_ready(config):
        asyncio.run(make_volume(config))
    stage.mkdir(mode=0o700, parents=True)


def _put(staged: Path, parent: Path) -> None:
    """Give each directory its place; one that is there is of an earlier try and is replaced."""
    if not staged.is_dir():
        return
    parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    for path in staged.iterdir():
        shutil.rmtree(parent / path.name, ignore_errors=True)
        path.replace(parent / path.name)
    sync_directory(parent)
