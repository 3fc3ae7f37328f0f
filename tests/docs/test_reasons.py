"""Each reason that a record may give stands in docs/operations.md, with what an operator does about it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from torpor.control import reasons
from torpor.host.artifacts import _REASONS as S3_REASONS
from torpor.host.build_hooks import failed_check
from torpor.model.hooks import Hook

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src/torpor"
SECTION = (ROOT / "docs/operations.md").read_text().split("### What a stateReason asks for")[1].split("\n## ")[0]
PAGE = " ".join(SECTION.split())
FIRST_WORDS = ("The MicroVM ", "The virtual machine", "The machine was restarted", "The saved files", "The guest does",
               "Recovered from", "Imported:", "Imported without")  # fmt: skip
RAISED = {"BuildFailed", "ArtifactUnavailable"}
SHORTEST = 8
"""Letters of a piece of text that are worth looking for."""


def _pieces(template: str) -> list[str]:
    """The parts of a text that are always the same."""
    return [piece.strip(" .") for piece in re.split(r"\{[^}]*\}", template) if len(piece.strip()) >= SHORTEST]


MICROVM_REASONS = {name: text for name, text in vars(reasons).items() if name.isupper() and isinstance(text, str)}


@pytest.mark.parametrize("name", MICROVM_REASONS)
def test_every_reason_of_a_microvm_is_explained(name: str) -> None:
    for piece in _pieces(MICROVM_REASONS[name]) or [MICROVM_REASONS[name]]:
        assert piece in PAGE, f"{name}: {piece!r}"


def _literals(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _docstrings(tree: ast.AST) -> set[str]:
    """Every text that stands alone as a statement, those under fields included."""
    return {node.value.value for node in ast.walk(tree) if isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)}


ANSWERS = ("went away", "has been terminated", "not found", "; only a", " is ", "could not be recovered: ")
"""Texts of refusals that begin alike; they are answers to calls, not reasons in records."""


def test_no_reason_is_written_anywhere_else() -> None:
    for path in sorted((SOURCE / "control").rglob("*.py")):
        if path.name == "reasons.py":
            continue
        tree = ast.parse(path.read_text())
        for text in set(_literals(tree)) - _docstrings(tree):
            is_reason = text.startswith(FIRST_WORDS) and not any(each in text for each in ANSWERS)
            assert not is_reason or text.strip() == "The MicroVM", f"{path.name}: {text!r} belongs into reasons.py"


def _raised() -> Iterator[tuple[str, str]]:
    """The beginning of each text that says why a build failed; what follows differs."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in RAISED and node.args:
                first = next((text.strip() for text in _literals(node.args[0]) if len(text.strip()) >= SHORTEST), None)
                if first is not None and not first.startswith("cannot be read"):  # behind one of S3_REASONS
                    yield path.name, first
    for code in {*S3_REASONS.values()}:
        yield "artifacts.py", f"{code}:"
    yield "build_hooks.py", failed_check(Hook.READY, 500).partition(": ")[0]


@pytest.mark.parametrize(("file", "text"), sorted(set(_raised())))
def test_every_reason_of_a_build_is_explained(file: str, text: str) -> None:
    code = re.match(r"[A-Z0-9_]+(?=:)", text)
    expected = code[0] if code is not None else text.partition(". ")[0].rstrip(":").strip()
    assert expected in PAGE, f"{file}: {text!r}"


def test_every_reason_of_a_connector_is_explained() -> None:
    tree = ast.parse((SOURCE / "control/connectors/rules.py").read_text())
    verdict = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "verdict")
    texts = {text.strip() for text in set(_literals(verdict)) - _docstrings(verdict)}
    found = [text for text in texts if "exist" in text or "VPC as" in text]
    assert len(found) == 2
    for text in found:
        assert text in PAGE
