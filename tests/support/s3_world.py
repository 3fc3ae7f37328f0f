"""The embedded S3 as the service puts it together: accounts in a database, rclone, and the front before it."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import uvicorn
from botocore.config import Config as BotoConfig

from support.edge_world import free_port
from torpor.api.s3 import S3Front
from torpor.config import Config, S3Settings
from torpor.control.accounts import Accounts
from torpor.control.buckets import Buckets
from torpor.edge.s3 import EmbeddedS3
from torpor.model.account import Credential, PrincipalKind
from torpor.model.clock import MovableClock
from torpor.model.ids import AccountId
from torpor.store import Database

ACCOUNT = AccountId("000000000000")
OTHER = AccountId("111111111111")


@dataclass
class S3World:
    s3: EmbeddedS3
    accounts: Accounts
    buckets: Buckets
    clock: MovableClock
    root: Credential
    config: Config
    database: Database

    @property
    def objects(self) -> Path:
        return self.config.data_dir / "s3"

    @property
    def url(self) -> str:
        return self.s3.url

    def client(self, key: Credential | None = None, *, region: str = "us-east-1", **options: Any) -> Any:
        key = key or self.root
        return boto3.client(
            "s3", endpoint_url=self.url, region_name=region, aws_access_key_id=key.access_key_id,
            aws_secret_access_key=key.secret, aws_session_token=key.session_token,
            config=BotoConfig(signature_version="s3v4", s3={"addressing_style": "path", **options.pop("s3", {})},
                              retries={"total_max_attempts": 1}, **options))

    async def role(self, *statements: dict[str, Any], name: str = "worker", account: AccountId = ACCOUNT) -> Credential:
        """A session of a role that may do what the statements say."""
        policy = {"Version": "2012-10-17", "Statement": list(statements)}
        made = await self.accounts.put_principal(account, PrincipalKind.ROLE, name, {"p": policy})
        return await self.accounts.create_session(made.arn, timedelta(hours=1), "microvm-1")


def allow(*actions: str, on: str | list[str] = "*", **members: Any) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": list(actions), "Resource": on, **members}


@asynccontextmanager
async def s3_world(data_dir: Path) -> AsyncIterator[S3World]:
    config = Config(data_dir=data_dir, s3=S3Settings(port=free_port()))
    clock = MovableClock()
    database = Database(config.database_url)
    try:
        await database.create_tables()
        accounts, buckets = Accounts(config, database, clock), Buckets(config, database)
        root = await accounts.ensure_default()
        await accounts.create_account(OTHER, "other")
        await buckets.start()
        async with EmbeddedS3(config, data_dir, data_dir / "run") as s3:
            front = S3Front(accounts, buckets, s3.socket)
            server = uvicorn.Server(uvicorn.Config(
                front, http="httptools", ws="none", lifespan="off", log_config=None, access_log=False,
                server_header=False))
            assert s3.listener is not None
            serving = asyncio.create_task(server.serve([s3.listener]), name="s3")
            try:
                yield S3World(s3, accounts, buckets, clock, root, config, database)
            finally:
                server.should_exit = True
                await serving
                await front.close()
    finally:
        await database.close()


def memory_mib(pid: int) -> float:
    """What a process holds now."""
    found = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(found.stdout) / 1024
