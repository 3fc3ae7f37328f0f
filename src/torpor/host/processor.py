"""What kind of processor this machine has, in the API's words."""

from __future__ import annotations

import platform
from typing import Final

_ARCHITECTURES: Final = {"x86_64": "X86_64", "amd64": "X86_64", "aarch64": "ARM_64", "arm64": "ARM_64"}
_CHIPSETS: Final = {"X86_64": ("INTEL", "1"), "ARM_64": ("GRAVITON", "3")}
"""Build records must name one of AWS's chipsets; ours stands for "the processor of this machine"."""


def architecture() -> str:
    """`X86_64` or `ARM_64`."""
    return _ARCHITECTURES.get(platform.machine().lower(), "X86_64")


def chipset() -> tuple[str, str]:
    """Chipset and generation that build records of this machine carry."""
    return _CHIPSETS[architecture()]
