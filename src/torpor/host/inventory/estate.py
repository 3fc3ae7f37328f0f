"""Where the things of one data directory are."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from torpor.config import Config
from torpor.folders import FOLDERS, SIMULATED
from torpor.host.layout import Layout, run_dir_of
from torpor.host.setup.volume import IMAGE, volume_path


@dataclass(frozen=True, slots=True)
class Estate:
    """Where to look: everything that belongs to one data directory and to nobody else."""

    data_dir: Path
    owner: str
    """Part of the names of its namespaces, nftables tables and cgroups."""
    network: IPv4Network
    layout: Layout

    @property
    def run_root(self) -> Path:
        return self.layout.run_dir.parent

    @property
    def volume_image(self) -> Path:
        return self.data_dir / IMAGE

    @property
    def owners_mounts(self) -> frozenset[str]:
        """Where whoever runs the machine mounts disks; Torpor itself mounts the volume alone."""
        return frozenset(map(str, (self.layout.volume, *(self.data_dir / name for name in FOLDERS))))

    @property
    def simulated(self) -> Path:
        return self.data_dir / SIMULATED


def estate_of(config: Config) -> Estate:
    """The estate of a service with these settings."""
    run_dir = run_dir_of(config.data_dir)
    layout = Layout(volume_path(config), run_dir)
    return Estate(config.data_dir, run_dir.parent.name, IPv4Network(config.network.slots), layout)
