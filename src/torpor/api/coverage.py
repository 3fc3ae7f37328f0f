"""Writes the coverage page from the models, the operations and the tests: `python -m torpor.api.coverage`.

Run in a clone of the repository. With `--check` it writes nothing and fails when the page is not up to date.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Final

from torpor.api.cloudwatch.operations import LOG_OPERATIONS
from torpor.api.operations import OPERATIONS
from torpor.api.spec import CORE, LOGS, MICROVMS, Operation, load_service

PAGE: Final = Path("docs/coverage.md")
SOURCES: Final = ("src/torpor/api/operations", "src/torpor/control/connectors", "src/torpor/api/cloudwatch")
"""Where members are read by name; connectors get their request whole."""
TESTS: Final = ("tests/api", "tests/sdk")
FOR_ALL: Final = ("test_parser.py", "test_validation.py", "test_serializer.py", "test_errors.py", "test_fuzz.py")
"""These take every operation from the models."""

_HEAD: Final = """# Coverage of the AWS API

Made by `python -m torpor.api.coverage` from botocore's models; a test fails when it is not up to date.

Every operation below is parsed, checked against the constraints of its model and serialized by the same code. The
tests in `{tests}` named
{for_all}
take all of them from the models. The last column names the tests that call the operation besides. A member is
*handled* when the operation or `control` reads or echoes it; *ignored* ones are accepted and checked, and change
nothing.
"""


def page(root: Path) -> str:
    """The whole page for a clone at `root`."""
    names = ", ".join(f"`{name}`" for name in FOR_ALL)
    parts = [_HEAD.format(tests=TESTS[0], for_all=names)]
    parts += [_section(root, service) for service in (MICROVMS, CORE, LOGS)]
    return "\n".join(parts)


def _section(root: Path, service: str) -> str:
    title = {MICROVMS: service, CORE: f"{service} (network connectors)", LOGS: f"{service} (CloudWatch Logs)"}[service]
    rows = [f"\n## {title}\n", "| Operation | Route | Status | Handled | Ignored | Tested in |",
            "|---|---|---|---|---|---|"]
    rows += [_row(root, operation) for _, operation in sorted(load_service(service).operations.items())]
    return "\n".join(rows) + "\n"


def _row(root: Path, operation: Operation) -> str:
    read = _names_read(root)
    members = list(operation.input.members)
    is_served = operation.name in OPERATIONS or operation.name in LOG_OPERATIONS
    handled = [name for name in members if name in read] if is_served else []
    ignored = [name for name in members if name not in handled]
    name = operation.name if is_served else f"{operation.name} (missing)"
    return (f"| {name} | {operation.method} `{operation.uri}` | {operation.status} | {_list(handled)} | "
            f"{_list(ignored)} | {_list(_tests_of(root, operation.name))} |")


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "–"


@cache
def _names_read(root: Path) -> frozenset[str]:
    """Every string constant of the sources: members are read by their literal names."""
    return frozenset(
        node.value
        for source in SOURCES
        for path in (root / source).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _tests_of(root: Path, operation: str) -> list[str]:
    spellings = (f'"{operation}"', f".{_snake(operation)},", f".{_snake(operation)})", f'"{_snake(operation)}"')
    return [
        path.name for tests in TESTS for path in sorted((root / tests).glob("test_*.py"))
        if path.name not in FOR_ALL and any(spelling in path.read_text() for spelling in spellings)
    ]


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


def main(arguments: list[str]) -> int:
    text = page(Path())
    if "--check" in arguments:
        if not PAGE.exists() or PAGE.read_text() != text:
            sys.stderr.write(f"{PAGE} is not up to date: run python -m torpor.api.coverage\n")
            return 1
        return 0
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
