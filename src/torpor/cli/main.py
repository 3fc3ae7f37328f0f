"""The `torpor` command."""

from __future__ import annotations

import importlib
from typing import Final

import click

from torpor import __version__

COMMANDS: Final = {
    "setup": "torpor.cli.machine", "doctor": "torpor.cli.machine", "import-base": "torpor.cli.machine",
    "up": "torpor.cli.service", "down": "torpor.cli.service", "env": "torpor.cli.service",
    "deploy": "torpor.cli.deploy",
    "images": "torpor.cli.images", "builds": "torpor.cli.images", "delete-image": "torpor.cli.images",
    "run": "torpor.cli.microvms", "ls": "torpor.cli.microvms", "suspend": "torpor.cli.microvms",
    "resume": "torpor.cli.microvms", "terminate": "torpor.cli.microvms", "timeline": "torpor.cli.microvms",
    "logs": "torpor.cli.logs", "curl": "torpor.cli.curl",
}  # fmt: skip
"""Where each command is; a module is imported when its command is used, since boto3 alone takes 0.2 s."""


class Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name])
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="torpor")
def main() -> None:
    """Self-hosted microVMs, wire-compatible with AWS Lambda MicroVMs.

    Prepare a machine with `torpor setup`, start with `torpor up`, then `torpor deploy DIR` and `torpor run NAME`.
    """
