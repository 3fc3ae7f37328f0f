"""Who calls: the account, region and principal that a verified signature stands for."""

from __future__ import annotations

from dataclasses import dataclass

from torpor.model.ids import AccountId


@dataclass(frozen=True, slots=True)
class Caller:
    account: AccountId
    region: str
    """Of the signing scope."""
    principal: str
    """ARN, for example `arn:aws:iam::000000000000:root`."""
    access_key_id: str
