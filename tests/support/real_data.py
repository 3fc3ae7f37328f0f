"""The data directory that real tests share: what setup made is kept, what earlier runs stored is removed."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from torpor.config import Config
from torpor.host.setup.volume import unmount_volume

REAL_DATA = Path(os.environ.get("TORPOR_TEST_DATA", "/var/lib/torpor-test"))
KEPT = ("artefacts", "cache", "volume", "volume.xfs")


def forget(data_dir: Path = REAL_DATA) -> None:
    """Remove what an earlier run stored, not what setup made."""
    for path in data_dir.iterdir() if data_dir.is_dir() else []:
        if path.name in KEPT:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    for folder in ("snapshots", "microvms"):
        shutil.rmtree(data_dir / "volume" / folder, ignore_errors=True)


def unmount(data_dir: Path = REAL_DATA) -> None:
    asyncio.run(unmount_volume(Config(data_dir=data_dir)))
