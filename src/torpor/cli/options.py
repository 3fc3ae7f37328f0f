"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

_SERVICE = (
    click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), envvar="TORPOR_DATA_DIR",
                 help="Where everything is kept (default /var/lib/torpor)."),
    click.option("--config", type=click.Path(path_type=Path, exists=True, dir_okay=False),
                 help="A TOML file of settings."),
    click.option("--engine", type=click.Choice(["auto", "qemu", "firecracker", "simulated"]), help="Default: auto."),
    click.option("--region", help="Default: us-east-1."),
    click.option("--api-port", type=click.IntRange(0, 65535), help="Default: 7060."),
    click.option("--endpoint-port", type=click.IntRange(0, 65535), help="HTTPS of the microVMs. Default: 443."),
    click.option("--s3-port", type=click.IntRange(0, 65535), help="Of the embedded S3. Default: 7061."),
)  # fmt: skip


def service_options(command: Any) -> Any:
    """What `up` and the server itself accept."""
    for option in reversed(_SERVICE):
        command = option(command)
    return command


def data_dir_option(command: Any) -> Any:
    """`--data-dir`, by which every command finds the service."""
    return _SERVICE[0](command)
