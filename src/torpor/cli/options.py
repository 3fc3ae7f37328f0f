"""Options that several commands share, and the settings they make."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from torpor.config import Config, ConfigError, load

_DATA_DIR = click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), envvar="TORPOR_DATA_DIR",
    help="Where everything is kept. Default: $TORPOR_DATA_DIR, else /var/lib/torpor.")  # fmt: skip
_CONFIG = click.option(
    "--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), envvar="TORPOR_CONFIG",
    help="A TOML file of settings. Default: $TORPOR_CONFIG, else none.")  # fmt: skip
_SERVICE = (
    _DATA_DIR,
    _CONFIG,
    click.option("--engine", type=click.Choice(["auto", "qemu", "firecracker", "simulated"]), help="Default: auto."),
    click.option("--region", help="Default: us-east-1."),
    click.option("--api-port", type=click.IntRange(0, 65535), help="Default: 7060; 0 takes a free one."),
    click.option("--endpoint-port", type=click.IntRange(1, 65535), help="HTTPS of the microVMs. Default: 443."),
    click.option("--s3-port", type=click.IntRange(1, 65535), help="Of the embedded S3. Default: 7061."),
)


def service_options(command: Any) -> Any:
    """What `up` and the server itself accept."""
    for option in reversed(_SERVICE):
        command = option(command)
    return command


def data_dir_option(command: Any) -> Any:
    """`--data-dir`, by which every command finds the service."""
    return _DATA_DIR(command)


def machine_options(command: Any) -> Any:
    """What commands accept that work on this machine without the service."""
    return _DATA_DIR(_CONFIG(command))


def settings(config: Path | None, **overrides: Any) -> Config:
    """The file's settings and the options given, with an absolute data directory.

    Raises:
        ConfigError: naming the file and the setting.
        OSError: the file cannot be read.
    """
    try:
        found = load(config, **overrides)
    except ConfigError as error:
        raise ConfigError(f"{config}: {error}" if config else str(error)) from error
    except (ValueError, TypeError) as error:
        # Not TOML, not UTF-8, or a value no setting of its kind can have.
        raise ConfigError(f"{config}: {error}") from error
    return replace(found, data_dir=found.data_dir.absolute())
