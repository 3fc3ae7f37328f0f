"""Accounts, principals and the access keys that stand for them (spec 9.4)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from torpor.model.ids import AccountId

ACCOUNT_ID: Final = re.compile(r"[0-9]{12}")


class PrincipalKind(StrEnum):
    ROOT = "root"
    USER = "user"
    ROLE = "role"


@dataclass(frozen=True, slots=True)
class Account:
    account: AccountId
    """Twelve digits."""
    name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Principal:
    """Who may act in an account, with the identity policies attached by name."""

    arn: str
    account: AccountId
    kind: PrincipalKind
    created_at: datetime
    policies: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Credential:
    """An access key with everything a signature check needs; the secret stays out of every text form."""

    access_key_id: str
    secret: str = field(repr=False)
    session_token: str | None = field(repr=False)
    account: AccountId
    principal: str
    """ARN of the root, user, or assumed-role session."""
    expires_at: datetime | None = None


def root_arn(account: AccountId) -> str:
    return f"arn:aws:iam::{account}:root"


def identity_of(principal: str) -> str:
    """The ARN whose policies count: an assumed-role session acts as its role."""
    found = re.fullmatch(r"arn:aws:sts::([0-9]{12}):assumed-role/(.+)/[^/]+", principal)
    return f"arn:aws:iam::{found[1]}:role/{found[2]}" if found else principal
