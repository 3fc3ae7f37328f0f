"""Client tokens: the same request twice is answered with what the first one made (spec 1.10).

Recall and keep belong into the transaction that makes the resource, so that a crash leaves both or neither.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from torpor.model.caller import Caller
from torpor.model.errors import Conflict
from torpor.store import idempotency as tokens


@dataclass(frozen=True, slots=True)
class Claim:
    """A request that carries a client token."""

    account: str
    region: str
    operation: str
    token: str
    digest: str
    """Of everything that was asked, besides the token."""

    @property
    def key(self) -> tokens.Key:
        return (self.account, self.region, self.operation, self.token)


def claim(caller: Caller, operation: str, token: str | None, parameters: Mapping[str, object]) -> Claim | None:
    """None when there is no token: nothing is remembered then. `parameters` must be plain data."""
    if token is None:
        return None
    canonical = json.dumps(parameters, sort_keys=True, separators=(",", ":"), default=str)
    digest = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
    return Claim(caller.account, caller.region, operation, token, digest)


def recall(
    connection: Connection, claimed: Claim | None, now: datetime, error: type[Conflict] = Conflict
) -> str | None:
    """The resource that this token made before, None if it made none or was forgotten.

    Raises:
        error: the token came with other parameters before.
    """
    found = tokens.find(connection, claimed.key) if claimed else None
    if claimed is None or found is None:
        return None
    digest, resource, expires_at = found
    if expires_at is not None and expires_at <= now:
        return None
    if digest != claimed.digest:
        raise error("The client token was already used with different parameters.")
    return resource


def keep(
    connection: Connection, claimed: Claim | None, resource: str, now: datetime, expires_at: datetime | None = None
) -> None:
    """Remember what the token made; without an expiry for as long as the resource lives."""
    if claimed is not None:
        tokens.insert(connection, claimed.key, claimed.digest, resource, now, expires_at)


def forget(connection: Connection, account: str, region: str, operations: tuple[str, ...], resource: str) -> None:
    """The resource is gone: its tokens may make a new one."""
    tokens.remove_for(connection, account, region, operations, resource)
