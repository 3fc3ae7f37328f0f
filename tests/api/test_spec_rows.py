"""`spec_rows.txt`: the rows of the specification's tables, and the tests that hold them."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Row:
    section: str
    what: str
    tests: tuple[str, ...]
    literal: str


@dataclass(frozen=True)
class TestFile:
    __test__ = False
    text: str
    """Strings that stand side by side joined, so that a literal that is broken over lines is found."""
    docstring: str
    functions: dict[str, str]
    """Name → docstring."""


def read_rows() -> list[Row]:
    rows = []
    for line in (TESTS / "api/spec_rows.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            section, what, tests, literal = (part.strip() for part in line.split("|", 3))
            rows.append(Row(section, what, tuple(test.strip() for test in tests.split(",")), literal))
    return rows


@cache
def read_file(name: str) -> TestFile:
    tree = ast.parse((TESTS / name).read_text())
    functions = {node.name: ast.get_docstring(node) or "" for node in ast.walk(tree)
                 if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    return TestFile(_strings(tree), ast.get_docstring(tree) or "", functions)


def _strings(tree: ast.AST) -> str:
    """All string constants, one per line; what an f-string puts in is left out."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(part.value) for part in node.values if isinstance(part, ast.Constant)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            found.append(node.value if isinstance(node.value, str) else node.value.decode(errors="replace"))
    text = "\n".join(found)
    return text + text.replace("\\", "")  # as a regular expression has it, too


ROWS = read_rows()


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.section} {row.what}" for row in ROWS])
def test_a_row_is_held_by_tests_that_name_its_section(row: Row) -> None:
    named = re.compile(rf"(?<![\d.]){re.escape(row.section)}(?![\d.]*\d)")
    files = []
    for test in row.tests:
        name, _, function = test.partition("::")
        file = read_file(name)
        assert function in file.functions, f"there is no {test}"
        files.append(file)
    assert any(named.search(file.docstring + "\n" + file.functions[test.partition("::")[2]])
               for file, test in zip(files, row.tests, strict=True)), f"none of {row.tests} names {row.section}"
    assert not row.literal or any(row.literal in file.text for file in files), f"{row.literal!r} is in none of them"
