"""An image or a suspended microVM as one file, for another machine."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import click

from torpor.cli.calls import image_arn, microvm_id
from torpor.cli.connection import Connection, ErrorAnswer, connect
from torpor.cli.options import data_dir_option
from torpor.cli.output import err, fail, json_option, print_json
from torpor.cli.transfer import compress_option, data_bytes, progress, removed_afterwards, stage_name
from torpor.cli.words import seconds, size
from torpor.host.archive import Reader, Writer, reading, writing
from torpor.host.exports import FILES
from torpor.model.errors import ArchiveDamaged

WITHIN: Final = 600.0
"""Seconds until the service has linked or moved files; nothing is copied."""
WAY_OUT: Final = {
    "only a SUSPENDED one is exported": "torpor suspend ID",
    "It cannot run here": "For a microVM, --cold imports its disk alone; build an image again with torpor deploy.",
    "is here already": "Terminate that one, or import with --new-id.",
}
"""What to do, by words of the refusal."""


@click.command(short_help="Write an image or a suspended microVM into one file.")
@click.argument("what")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option("--version", "image_version", help="Of an image. Default: the newest active one.")
@compress_option
@data_dir_option
@json_option
def export(what: str, file: Path, image_version: str | None, compress: str, data_dir: Path | None,
           as_json: bool) -> None:  # fmt: skip
    """Write WHAT, an image (name or ARN) or a suspended microVM (id), into FILE; - is standard output.

    The file holds memory, disk and the record with checksums, and whatever secrets the application keeps in them.
    """
    if as_json and str(file) == "-":
        raise click.UsageError("--json goes with a file, not with standard output.")
    service = connect(data_dir)
    started = time.monotonic()
    asked: dict[str, Any] = {"stage": stage_name()}
    if what.startswith("microvm-"):
        asked["microvmId"] = microvm_id(service, what)
    else:
        asked |= {"imageIdentifier": image_arn(service, what), "imageVersion": image_version}
    outbound = _asked(service, "/exports", asked)["outbound"]
    with removed_afterwards(Path(outbound["path"])) as stage:
        about = {**outbound["about"], "dataBytes": data_bytes(stage)}
        with progress(f"exporting {what}", about["dataBytes"]) as on_bytes, writing(file, compress) as stream:
            archive = Writer(stream, about, on_bytes)
            archive.directory(FILES, stage / FILES)
            archive.end()
    known = {name: about[name] for name in ("kind", "name", "version", "microvmId") if name in about}
    if str(file) == "-":
        return
    written = file.stat().st_size
    if as_json:
        print_json({**known, "file": str(file), "bytes": written, "dataBytes": about["dataBytes"]})
    else:
        name = about.get("microvmId") or f"{about['name']} {about['version']}"
        err.print(f"exported {name} to {file}, {size(written)}, after {seconds(time.monotonic() - started)}",
                  markup=False)  # fmt: skip


@click.command("import", short_help="Bring in what export wrote.")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False, allow_dash=True))
@click.option("--name", help="Of the image. Default: what it was called; one that is here gets a new version.")
@click.option("--new-id", is_flag=True, help="Give the microVM another id and endpoint: for a copy.")
@click.option("--cold", is_flag=True, help="Take a microVM whose memory cannot be restored here; see torpor recover.")
@data_dir_option
@json_option
def import_(file: Path, name: str | None, new_id: bool, cold: bool, data_dir: Path | None, as_json: bool) -> None:
    """Make an image, or a suspended microVM, of FILE; - is standard input.

    Refused when it cannot run here: another engine, or a processor of another family. A microVM's maximum duration
    begins anew.
    """
    service = connect(data_dir)
    started = time.monotonic()
    place = Path(service.ask("GET", "/exports")["path"])
    with reading(file) as stream, progress(f"importing {file}", None) as on_bytes:
        archive = _opened(stream, on_bytes, file)
        _asked(service, "/imports/check", {"about": archive.about, "cold": cold})
        stage = place / stage_name()
        with removed_afterwards(stage):
            stage.mkdir(mode=0o700, parents=True)
            try:
                archive.extract(lambda inside: stage / _below_files(inside))
            except ArchiveDamaged as error:
                fail(f"{file}: {error}", "Nothing was imported. Export it again.")
            found = _asked(service, "/imports", {"stage": stage.name, "about": archive.about, "name": name,
                                                 "new": new_id, "cold": cold})  # fmt: skip
    took = time.monotonic() - started
    if as_json:
        print_json({**found, "seconds": round(took, 3)})
    elif found["kind"] == "image":
        click.echo(found["imageArn"])
        err.print(f"imported {found['name']} {found['imageVersion']} after {seconds(took)}", markup=False)
    else:
        click.echo(found["microvmId"])
        err.print(f"{found['state']} after {seconds(took)}: {found['stateReason']}", markup=False)


def _opened(stream: Any, on_bytes: Any, file: Path) -> Reader:
    try:
        archive = Reader(stream, on_bytes)
    except ArchiveDamaged as error:
        fail(f"{file}: {error}", "torpor export writes what torpor import reads.")
    if archive.about.get("kind") == "backup":
        fail(f"{file} is a backup of a whole Torpor", f"torpor restore {file}")
    return archive


def _below_files(name: str) -> str:
    if name.partition("/")[0] != FILES or name.count("/") != 1:
        raise ArchiveDamaged("the archive has a file with an impossible name")
    return name


def _asked(service: Connection, path: str, body: dict[str, Any]) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = service.ask("POST", path, body, within=WITHIN)
    except ErrorAnswer as error:
        fail(str(error), next((remedy for words, remedy in WAY_OUT.items() if words in str(error)), ""))
    return answer
