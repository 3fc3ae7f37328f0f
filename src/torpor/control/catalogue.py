"""The half of `control` that knows what there is: accounts, images, connectors, tags, limits. `Control` has one."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sqlalchemy.engine import make_url

from torpor.config import Config
from torpor.control.accounts import Accounts
from torpor.control.buckets import Buckets
from torpor.control.connectors import Connectors
from torpor.control.images import Images
from torpor.control.images.build_log import Artifacts, Logs
from torpor.control.images.builds import Builds
from torpor.control.images.removals import Removals
from torpor.control.limits import Limits
from torpor.control.managed import Managed
from torpor.control.paging import KEY_BYTES, Cursors
from torpor.control.tags import Tags
from torpor.control.work import lasting
from torpor.host.base import Host
from torpor.model.clock import Clock
from torpor.model.seams import Seams
from torpor.store import Database, secrets

OWNER_ONLY = 0o600


class Catalogue:
    """Builds its parts from the configuration; `start` once the tables exist and the host has started."""

    def __init__(
        self, config: Config, database: Database, host: Host, clock: Clock, artifacts: Artifacts, logs: Logs,
        seams: Seams | None = None,
    ) -> None:
        seams = seams or Seams()
        self._config = config
        self._database = database
        self._host = host
        self._clock = clock
        self.cursors = Cursors(b"")
        self.accounts = Accounts(config, database, clock)
        self.buckets = Buckets(config, database)
        self.limits = Limits(database, self.accounts, config.limits, clock)
        self.managed = Managed(host.architecture, self.cursors)
        self.connectors = Connectors(database, config.network, self.limits, self.cursors, clock, seams)
        self.builds = self._builds = Builds(database, host, clock, artifacts, logs, config.build, seams,
                              self.connectors.outward, self.buckets.check_artifact)
        self._removals = Removals(database, host, clock, seams)
        self.images = Images(
            database, host, clock, config.images, self.limits, self.cursors, self.managed, self.connectors,
            self._builds, self._removals,
        )
        self.tags = Tags(database, self.connectors)
        self.accounts.tags_of = self.tags.of_resource

    async def start(self) -> None:
        """Load accounts, make the default one and the cursor key, learn the machine's size."""
        await asyncio.to_thread(_keep_private, self._config.database_url)
        key = await self._database.write(lambda connection: secrets.get_or_make(connection, "cursors", KEY_BYTES))
        self.cursors.use(key)
        await self.accounts.start()
        await self.buckets.start()
        self.limits.fit(await self._host.stats())

    async def run(self) -> None:
        """Build, delete and settle, for ever. What a dead process left under way is gone on with."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(lasting(self._clock, "builds", self._builds.run), name="builds")
            tasks.create_task(lasting(self._clock, "removals", self._removals.run), name="removals")
            tasks.create_task(lasting(self._clock, "connectors", self.connectors.run), name="connectors")
            tasks.create_task(lasting(self._clock, "accounts", self.accounts.run), name="accounts")


def _keep_private(url: str) -> None:
    """The database holds the secrets of access keys: nobody but its owner may read it."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        for suffix in ("", "-wal", "-shm"):
            path = Path(parsed.database + suffix)
            if path.exists():
                path.chmod(OWNER_ONLY)
