"""What the lab does inside: each part is one command with a limit, and stands for one line of the summary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

PYTEST: Final = ("python3", "-m", "pytest", "-v", "--no-header", "--durations=5", "-m", "real")


@dataclass(frozen=True, slots=True)
class Part:
    """One thing to prove."""

    name: str
    title: str
    argv: tuple[str, ...]
    timeout: int
    """Seconds."""

    @property
    def is_pytest(self) -> bool:
        return self.argv[: len(PYTEST)] == PYTEST


def engine_tests(engine: str, *places: str) -> tuple[str, ...]:
    return (*PYTEST, *places, "-k", f"[{engine}")


PARTS: Final = (
    Part("firecracker", "engine contract, Firecracker on KVM", engine_tests("firecracker", "tests/vmm"), 600),
    Part("qemu", "engine contract, QEMU on KVM", engine_tests("qemu", "tests/vmm/test_contract.py"), 600),
    Part("demo", "./dev demo --engine firecracker", ("python3", "tools/demo.py", "--engine", "firecracker"), 600),
)
BY_NAME: Final = {part.name: part for part in PARTS}
