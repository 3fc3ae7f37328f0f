"""The `torpor` command."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import keyword
import os
import sys
from typing import Any, Final

import click

from torpor import __version__
from torpor.model.errors import TorporError

SECTIONS: Final = {
    "This machine": {"setup": "machine", "doctor": "machine", "gc": "gc", "import-base": "machine"},
    "The service": {
        "up": "service", "down": "service", "env": "service", "usage": "usage",
        "audit": "audit", "backup": "backup", "restore": "backup",
        "export": "moving", "import": "moving",
    },
    "Images": {"deploy": "deploy", "images": "images", "builds": "images", "delete-image": "images"},
    "MicroVMs": {
        "run": "microvms", "ls": "microvms", "curl": "curl", "shell": "shell", "exec": "shell", "cp": "copy",
        "logs": "logs", "suspend": "microvms",
        "resume": "microvms", "recover": "recover", "terminate": "microvms", "timeline": "timeline", "why": "why",
    },
}  # fmt: skip
"""Where each command is; a module is imported when its command is used, since boto3 alone takes 0.2 s."""
COMMANDS: Final = {name: module for section in SECTIONS.values() for name, module in section.items()}
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
"""Exit codes as a shell gives them to programs that SIGINT or SIGPIPE ended."""


class Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"torpor.cli.{COMMANDS[cmd_name]}")
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(module, f"{name}_" if keyword.iskeyword(name) else name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        wanted = args[0] if args else ""
        if wanted and not wanted.startswith("-") and wanted not in COMMANDS:
            near = difflib.get_close_matches(wanted, COMMANDS, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "`torpor --help` lists them."
            ctx.fail(f"No such command {wanted!r}. {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, names in SECTIONS.items():
            commands = [(name, self.get_command(ctx, name)) for name in names]
            with formatter.section(section):
                formatter.write_dl([(name, found.get_short_help_str(75)) for name, found in commands if found])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what goes wrong outside of Torpor's own code ends in one line, never in a traceback."""
        from torpor.cli.output import fail

        try:
            return super().invoke(ctx)
        except TorporError as error:
            fail(str(error), getattr(error, "remedy", ""))
        except BrokenPipeError:
            _forget_standard_output()
            raise SystemExit(BROKEN_PIPE) from None
        except KeyboardInterrupt:
            if sys.stderr.isatty():
                click.echo(err=True)
            raise SystemExit(INTERRUPTED) from None
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            fail(f"{place}{error.strerror or error}")


def _forget_standard_output() -> None:
    """What is still in its buffer must not fail again when Python ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="torpor")
def main() -> None:
    """Self-hosted microVMs, wire-compatible with AWS Lambda MicroVMs.

    Prepare a machine with `torpor setup`, start with `torpor up`, then `torpor deploy DIR` and `torpor run NAME`.
    """
