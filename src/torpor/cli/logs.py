"""What applications and builds wrote."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from torpor.cli.calls import every, image_arn, microvm_id, name_of
from torpor.cli.connection import Connection, connect
from torpor.cli.options import data_dir_option
from torpor.cli.output import fail, print_json_line


@click.command(short_help="Print what an application or a build wrote.")
@click.argument("thing")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until it ends, or Ctrl-C.")
@click.option("-n", "--lines", "last", type=click.IntRange(0), help="Only the last so many lines (then new ones).")
@click.option("-t", "--timestamps", is_flag=True, help="Begin each line with its time.")
@click.option("--version", "image_version", help="Of the image, for example 2.0. Default: its newest.")
@data_dir_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def logs(thing: str, follow: bool, last: int | None, timestamps: bool, image_version: str | None,
         data_dir: Path | None, as_json: bool) -> None:  # fmt: skip
    """Print what THING wrote: the application of a microVM (id), or the build of an image (name)."""
    service = connect(data_dir)
    path = _path(service, thing, image_version)
    with contextlib.suppress(KeyboardInterrupt):
        after = None
        if last is not None:
            kept = deque(service.follow(path), maxlen=last or 1)
            after = kept[-1]["sequence"] if kept else None
            _show(kept if last else (), timestamps, as_json)
            if not follow:
                return
        _show(service.follow(path, follow="true" if follow else None, after=after), timestamps, as_json)


def _path(service: Connection, thing: str, version: str | None) -> str:
    client = service.client("lambda-microvms")
    if name_of(thing) in {each["name"] for each in every(client, "list_microvm_images")}:
        if version is None:
            versions = every(client, "list_microvm_image_versions", imageIdentifier=image_arn(service, thing))
            if not versions:
                fail(f"{name_of(thing)} has no versions, so nothing was built")
            version = str(max(versions, key=lambda each: each["createdAt"])["imageVersion"])
        return f"/images/{name_of(thing)}/versions/{version}/logs"
    if version is not None:
        fail(f"there is no image {thing}", "`torpor images` shows which there are.")
    if not thing.removeprefix("microvm-") or not set(thing.removeprefix("microvm-")) <= set("0123456789abcdef-"):
        fail(f"there is neither an image nor a microVM {thing}", "`torpor images` and `torpor ls --all` show them.")
    return f"/microvms/{microvm_id(service, thing)}/logs"


def _show(lines: Iterable[dict[str, Any]], timestamps: bool, as_json: bool) -> None:
    """Print log lines as they come; standard error of the application to standard error."""
    for line in lines:
        if as_json:
            print_json_line(line)
            continue
        at = datetime.fromtimestamp(line["at"], UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z " if timestamps else ""
        click.echo(f"{at}{line['text']}", err=line.get("source") == "stderr")
