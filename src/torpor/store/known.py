"""What the records need of a machine: the keys by which `doctor` and `gc` tell what is theirs."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, select

from torpor.model.ids import MicrovmId
from torpor.model.image import BuildState
from torpor.model.microvm import MicrovmState
from torpor.store.builds import table as builds
from torpor.store.microvms import microvms
from torpor.store.versions import table as versions


@dataclass(frozen=True, slots=True)
class Known:
    """Everything that has a record and has not ended."""

    microvms: dict[MicrovmId, MicrovmState]
    snapshots: dict[str, str]
    """Name → the image version it belongs to, as `ARN version`."""
    builds: frozenset[str]
    """Those that wait or run."""

    @property
    def keys(self) -> frozenset[str]:
        """See `host.holding`."""
        return frozenset((
            *(f"microvm:{each}" for each in self.microvms), *(f"snapshot:{each}" for each in self.snapshots),
            *(f"build:{each}" for each in self.builds),
        ))  # fmt: skip


def known(connection: Connection) -> Known:
    vms = connection.execute(
        select(microvms.c.microvm_id, microvms.c.state).where(microvms.c.state != MicrovmState.TERMINATED.value)
    )
    made = connection.execute(
        select(versions.c.snapshot, versions.c.image_arn, versions.c.number).where(versions.c.snapshot.is_not(None))
    )
    unfinished = (BuildState.PENDING.value, BuildState.IN_PROGRESS.value)
    under_way = connection.execute(select(builds.c.build_id).where(builds.c.state.in_(unfinished))).scalars()
    return Known(
        {MicrovmId(name): MicrovmState(state) for name, state in vms},
        {snapshot: f"{arn} {number}.0" for snapshot, arn, number in made},
        frozenset(under_way),
    )
