"""Temporary credentials of a role, as a guest gets them (spec 13)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime


@dataclass(frozen=True, slots=True)
class RoleCredentials:
    """The secrets stay out of every text form."""

    access_key_id: str
    secret: str = field(repr=False)
    session_token: str = field(repr=False)
    updated_at: datetime
    expires_at: datetime
