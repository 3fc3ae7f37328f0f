"""What a machine has, and what the VMs on it use of it. Everything here blocks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from torpor.host.base import HostStats, Load
from torpor.host.processor import cpu_seconds
from torpor.host.snapshots import Maker
from torpor.model.ids import MicrovmId
from torpor.vmm import Vmm


def loads_of(vmms: Mapping[MicrovmId, Vmm]) -> dict[MicrovmId, Load]:
    return {microvm_id: Load(cpu_seconds(vmm.pid), vmm.memory_bytes()) for microvm_id, vmm in vmms.items()}


def stats_of(maker: Maker, volume: Path, vmms: Sequence[Vmm]) -> HostStats:
    """Raises OSError."""
    disk = shutil.disk_usage(volume)
    used = sum(vmm.memory_bytes() for vmm in vmms)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return HostStats(maker.engine, maker.acceleration, os.cpu_count() or 1, memory, used, disk.free)
