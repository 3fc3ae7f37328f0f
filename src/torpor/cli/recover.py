"""The way out for a microVM whose memory cannot be restored."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import click

from torpor.cli.calls import microvm_id
from torpor.cli.connection import ErrorAnswer, connect
from torpor.cli.microvms import readable
from torpor.cli.options import data_dir_option
from torpor.cli.output import err, fail, json_option, print_json
from torpor.cli.words import seconds

WITHIN: Final = 900.0
"""Seconds. The guest boots and the application starts, for as long as its `/ready` may take."""


@click.command(short_help="Boot a suspended microVM's disk; memory is lost.")
@click.argument("microvm")
@data_dir_option
@json_option
def recover(microvm: str, data_dir: Path | None, as_json: bool) -> None:
    """Boot the disk of a suspended MICROVM that cannot be resumed: files are kept, memory and processes are lost.

    The application starts anew and is called as at a launch, without the payload. If that fails the microVM is
    suspended as before.
    """
    service = connect(data_dir)
    known = microvm_id(service, microvm)
    started = time.monotonic()
    try:
        with err.status(f"booting the disk of {known}"):
            found: dict[str, Any] = service.ask("POST", f"/microvms/{known}/recover", within=WITHIN)
    except ErrorAnswer as error:
        fail(str(error), f"What happened to it: torpor timeline {known}")
    took = time.monotonic() - started
    if as_json:
        print_json({**readable(found), "seconds": round(took, 3)})
    else:
        err.print(f"{known} is {found['state']} after {seconds(took)}: {found['stateReason']}", markup=False)
