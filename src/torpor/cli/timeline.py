"""A microVM's life as a tree: its actions, and under each the steps with what they took."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import click
from rich.text import Text

from torpor.cli.calls import microvm_id
from torpor.cli.connection import connect
from torpor.cli.options import data_dir_option
from torpor.cli.output import err, json_option, out, print_json
from torpor.cli.words import seconds

PARTS: Final = {
    "restore": ("take_slot", "clone_disk", "restore_memory", "unpause", "guest_restored"),
    "boot": ("take_slot", "clone_disk", "boot_vm", "start_application"),
    "save": ("sync", "pause", "save_memory", "clone_disk", "publish"),
}
"""Steps of the service that the machine reports in parts; the parts come before their whole."""


@dataclass(slots=True)
class Node:
    name: str
    seconds: float
    parts: list[Node] = field(default_factory=list)


@click.command(short_help="Show what happened to a microVM and what it took.")
@click.argument("microvm")
@data_dir_option
@json_option
def timeline(microvm: str, data_dir: Path | None, as_json: bool) -> None:
    """Show what happened to MICROVM and why, with the steps of each action and how long they took."""
    service = connect(data_dir)
    entries = service.ask("GET", f"/microvms/{microvm_id(service, microvm)}/timeline")["items"]
    if as_json:
        print_json(entries)
        return
    if not entries:
        err.print("nothing has happened yet")
    for line in drawn(entries):
        out.print(line)


def drawn(entries: Sequence[dict[str, Any]]) -> Iterator[Text]:
    """The lines of the tree. An entry without a step is an action; the entries after it are its steps."""
    last_day = ""
    for action, steps in _actions(entries):
        at = datetime.fromtimestamp(action["at"], UTC)
        if (day := at.strftime("%Y-%m-%d")) != last_day:
            last_day = day
            yield Text(f"{day} (UTC)", "dim")
        line = Text(at.strftime("%H:%M:%S.%f")[:-3], "dim").append("  ")
        line.append(f"{action['action']:<20}", "bold").append(f"{seconds(action['seconds']):>12}", "bold")
        line.append(f"  {action.get('cause') or ''}", "dim")
        line.rstrip()
        yield line
        yield from _branches(nested(steps), " " * 14)


def nested(steps: Sequence[tuple[str, float]]) -> list[Node]:
    """Put the parts of a step under it."""
    found: list[Node] = []
    for name, took in steps:
        node = Node(name, took)
        while found and not found[-1].parts and found[-1].name in PARTS.get(name, ()):
            node.parts.insert(0, found.pop())
        found.append(node)
    return found


def _actions(entries: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], list[tuple[str, float]]]]:
    found: list[tuple[dict[str, Any], list[tuple[str, float]]]] = []
    for entry in entries:
        if entry["step"] and found:
            found[-1][1].append((entry["step"], entry["seconds"]))
        else:
            found.append((entry, []))
    yield from found


def _branches(nodes: Sequence[Node], indent: str) -> Iterator[Text]:
    for number, node in enumerate(nodes):
        is_last = number == len(nodes) - 1
        label = f"{indent}{'└' if is_last else '├'} {node.name}"
        yield Text(f"{label:<34}{seconds(node.seconds):>12}")
        yield from _branches(node.parts, indent + ("  " if is_last else "│ "))
