"""The builder system: the disk of the VM in which Dockerfiles are built."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Final

from torpor.host.setup.debian import DebianSystem, make_system
from torpor.host.setup.disk import make_disk
from torpor.host.setup.packages import Apt, FractionOf

BUILDER_DISK: Final = "builder.ext4"
STORES: Final = 8
"""Places /stores/0 … for additional image stores; an empty one is no store and does no harm."""
GRAPH_ROOT: Final = "/var/lib/containers/storage"

CUSTOMIZE: Final = f"""
mkdir -p "$1/etc/containers" "$1{GRAPH_ROOT}" "$1/stores"
for n in $(seq 0 {STORES - 1}); do mkdir -p "$1/stores/$n"; done
cat > "$1/etc/containers/policy.json" <<'END'
{{"default": [{{"type": "insecureAcceptAnything"}}]}}
END
cat > "$1/etc/containers/storage.conf" <<'END'
[storage]
driver = "overlay"
graphroot = "{GRAPH_ROOT}"
runroot = "/run/containers/storage"

[storage.options]
additionalimagestores = [{", ".join(f'"/stores/{n}"' for n in range(STORES))}]
END
echo builder > "$1/etc/hostname"
printf '127.0.0.1 localhost builder\\n::1 localhost\\n' > "$1/etc/hosts"
"""

BUILDER: Final = DebianSystem(include=("buildah", "ca-certificates", "crun", "e2fsprogs"), customize=CUSTOMIZE)


async def make_builder(apt: Apt, into: Path, on_fraction: FractionOf) -> None:
    """Write BUILDER_DISK."""
    tree = into / "tree"
    await make_system(apt, BUILDER, tree, into, lambda fraction, detail: on_fraction(fraction * 0.9, detail))
    on_fraction(0.9, "writing the disk")
    await make_disk(tree, into / BUILDER_DISK, "builder")
    await asyncio.to_thread(shutil.rmtree, tree)
