"""The agent's sources and what changes its recipe."""

from __future__ import annotations

from pathlib import Path

from torpor.host.setup.agent import agent_inputs, guest_sources


def write_sources(root: Path) -> Path:
    (root / "cmd").mkdir(parents=True)
    (root / "go.mod").write_text("module x\n")
    (root / "cmd/main.go").write_text("package main\n")
    return root


def test_the_sources_are_found_in_a_checkout() -> None:
    assert (guest_sources() / "cmd/agent/main.go").is_file()


def test_a_changed_or_renamed_source_changes_the_recipe(tmp_path: Path) -> None:
    sources = write_sources(tmp_path)
    before = agent_inputs(sources, "amd64")
    (sources / "cmd/main.go").write_text("package main // more\n")
    changed = agent_inputs(sources, "amd64")
    (sources / "cmd/main.go").rename(sources / "cmd/other.go")
    renamed = agent_inputs(sources, "amd64")
    assert len({inputs["sources"] for inputs in (before, changed, renamed)}) == 3


def test_documents_tests_and_the_module_list_do_not_change_it(tmp_path: Path) -> None:
    sources = write_sources(tmp_path)
    before = agent_inputs(sources, "amd64")
    for name in ("PROTOCOL.md", "modules.txt", "cmd/main_test.go"):
        (sources / name).write_text("other")
    assert agent_inputs(sources, "amd64") == before


def test_another_architecture_is_another_recipe(tmp_path: Path) -> None:
    sources = write_sources(tmp_path)
    assert agent_inputs(sources, "amd64") != agent_inputs(sources, "arm64")
