"""Which kernel modules the guest loads, in which order."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torpor.host.setup.elf import read_sections
from torpor.host.setup.modules import ModuleTree, Wanted, parse_wanted, sort_modules
from torpor.model.errors import SetupFailed


def elf(sections: Mapping[str, bytes]) -> bytes:
    """A 64-bit ELF file with nothing but these sections."""
    named = {"": b"", **sections}
    names = b"".join(name.encode() + b"\0" for name in [*named, ".shstrtab"])
    named[".shstrtab"] = names
    content, headers, place, name_at = b"", b"", 64, 0
    for name, data in named.items():
        headers += struct.pack("<IIQQQQIIQQ", name_at, 1, 0, 0, place, len(data), 0, 0, 0, 0)
        content, place, name_at = content + data, place + len(data), name_at + len(name) + 1
    head = b"\x7fELF\x02\x01".ljust(0x28, b"\0") + struct.pack("<Q", place)
    return head.ljust(0x3A, b"\0") + struct.pack("<HHH", 64, len(named), len(named) - 1) + content + headers


def write_modules(root: Path, depends: Mapping[str, str], built_in: Sequence[str] = ()) -> Path:
    (root / "kernel").mkdir(parents=True)
    for name, needed in depends.items():
        info = b"license=GPL\0" + needed.encode() + b"\0"
        (root / "kernel" / f"{name}.ko").write_bytes(elf({".modinfo": info}))
    (root / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in built_in))
    return root


def test_comments_and_question_marks_in_the_list() -> None:
    text = "virtio_ring  # first\n\n# nothing\nnf-tables\nerofs?\n"
    assert parse_wanted(text) == [Wanted("virtio_ring"), Wanted("nf_tables"), Wanted("erofs", is_optional=True)]


def test_a_module_comes_after_what_it_depends_on(tmp_path: Path) -> None:
    root = write_modules(tmp_path / "6.1", {
        "virtio_ring": "depends=", "virtio": "depends=virtio_ring", "virtio-net": "depends=virtio,net_failover",
        "net_failover": "depends=failover", "failover": "depends=", "unused": "depends=",
    })  # fmt: skip
    order = ModuleTree(root).load_order([Wanted("virtio_net"), Wanted("virtio")])
    assert [path.stem for path in order] == ["virtio_ring", "virtio", "failover", "net_failover", "virtio-net"]


def test_a_module_that_is_built_in_is_not_loaded(tmp_path: Path) -> None:
    root = write_modules(tmp_path / "6.1", {"overlay": "depends=ext4"}, built_in=["ext4"])
    assert [path.stem for path in ModuleTree(root).load_order([Wanted("ext4"), Wanted("overlay")])] == ["overlay"]


def test_a_soft_dependency_comes_first_where_it_exists(tmp_path: Path) -> None:
    root = write_modules(tmp_path / "6.1", {"libcrc32c": "softdep=pre: crc32c absent post: later", "crc32c": "depends=",
                                            "later": "depends="})  # fmt: skip
    assert [path.stem for path in ModuleTree(root).load_order([Wanted("libcrc32c")])] == ["crc32c", "libcrc32c"]


def test_a_missing_module_is_named_unless_it_is_optional(tmp_path: Path) -> None:
    tree = ModuleTree(write_modules(tmp_path / "6.1", {}))
    assert tree.load_order([Wanted("absent", is_optional=True)]) == []
    with pytest.raises(SetupFailed, match=r"6\.1 has no module absent"):
        tree.load_order([Wanted("absent")])


def test_a_circle_is_named() -> None:
    with pytest.raises(SetupFailed, match="a → b → a"):
        sort_modules(["a"], {"a": ["b"], "b": ["a"]}.__getitem__)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 20), max_size=4), min_size=1, max_size=20))
def test_every_order_puts_dependencies_first(edges: list[list[int]]) -> None:
    # An edge only to a smaller number cannot make a circle.
    graph = {str(n): [str(m) for m in needed if m < n] for n, needed in enumerate(edges)}
    order = sort_modules(sorted(graph), graph.__getitem__)
    assert sorted(order) == sorted(graph)
    assert all(order.index(needed) < order.index(name) for name in graph for needed in graph[name])


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_a_damaged_file_is_refused_and_nothing_else_happens(tail: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"\x7fELF\x02\x01" + tail)
        file.flush()
        try:
            sections = read_sections(Path(file.name))
        except SetupFailed:
            return
        sections.needed()
        sections.modinfo("depends")
