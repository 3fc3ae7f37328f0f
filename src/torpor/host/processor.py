"""What kind of processor this machine has, in the API's words."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final

_ARCHITECTURES: Final = {"x86_64": "X86_64", "amd64": "X86_64", "aarch64": "ARM_64", "arm64": "ARM_64"}
_CHIPSETS: Final = {"X86_64": ("INTEL", "1"), "ARM_64": ("GRAVITON", "3")}
"""Build records must name one of AWS's chipsets; ours stands for "the processor of this machine"."""


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and all its threads; 0 when it is gone."""
    try:
        # Behind the name, which may hold anything: utime and stime are the 14th and 15th of proc_pid_stat(5).
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def architecture() -> str:
    """`X86_64` or `ARM_64`."""
    return _ARCHITECTURES.get(platform.machine().lower(), "X86_64")


def chipset() -> tuple[str, str]:
    """Chipset and generation that build records of this machine carry."""
    return _CHIPSETS[architecture()]
