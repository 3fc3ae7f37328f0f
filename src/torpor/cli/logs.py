"""What applications and builds wrote."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from torpor.cli.calls import every, image_arn, microvm_id, name_of
from torpor.cli.connection import connect
from torpor.cli.options import data_dir_option
from torpor.cli.output import json_option, print_json


@click.command()
@click.argument("thing")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until Ctrl-C.")
@click.option("-t", "--timestamps", is_flag=True, help="Begin each line with its time.")
@data_dir_option
@json_option
def logs(thing: str, follow: bool, timestamps: bool, data_dir: Path | None, as_json: bool) -> None:
    """Print what THING wrote: the application of a microVM (id), or the newest build of an image (name)."""
    service = connect(data_dir)
    client = service.client("lambda-microvms")
    names = {each["name"] for each in every(client, "list_microvm_images")}
    if name_of(thing) in names:
        versions = every(client, "list_microvm_image_versions", imageIdentifier=image_arn(service, thing))
        newest = max(versions, key=lambda each: each["createdAt"])["imageVersion"]
        path = f"/images/{name_of(thing)}/versions/{newest}/logs"
    else:
        path = f"/microvms/{microvm_id(service, thing)}/logs"
    with contextlib.suppress(KeyboardInterrupt):
        show(service.follow(path, follow="true" if follow else None), timestamps=timestamps, as_json=as_json)


def show(lines: Iterable[dict[str, Any]], *, timestamps: bool = False, as_json: bool = False) -> None:
    """Print log lines as they come; standard error of the application to standard error."""
    for line in lines:
        if "text" not in line:
            continue
        if as_json:
            print_json(line)
            continue
        at = datetime.fromtimestamp(line["at"], UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z " if timestamps else ""
        click.echo(f"{at}{line['text']}", err=line.get("source") == "stderr")


