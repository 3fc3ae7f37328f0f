"""Runs a command in mount and process namespaces of its own: whatever it mounts or starts is gone when it ends.

That holds for a killed command too, which is why setup needs no clean-up of mounts and loop devices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from torpor.host.setup.command import run

NAMESPACES: Final = ("--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc")


async def run_isolated(
    argv: Sequence[str | Path],
    *,
    timeout: float,
    has_network: bool,
    on_line: Callable[[str], None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """As `run`, apart from the host's mounts and processes, and from its network unless the command needs it."""
    network = () if has_network else ("--net", "--ipc", "--uts")
    return await run(
        ["unshare", *NAMESPACES, *network, "--", *argv], timeout=timeout, on_line=on_line, environment=environment
    )
