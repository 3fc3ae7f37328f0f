"""Network connectors of customers and the ones AWS provides (spec 8.1, 8.2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from torpor.model.ids import AccountId


class ConnectorState(StrEnum):
    PENDING = "PENDING"
    ACTIVE = "ACTIVE"
    INACTIVE = "INACTIVE"
    FAILED = "FAILED"
    DELETING = "DELETING"
    DELETE_FAILED = "DELETE_FAILED"


class UpdateStatus(StrEnum):
    SUCCESSFUL = "Successful"
    FAILED = "Failed"
    IN_PROGRESS = "InProgress"


class ReasonCode(StrEnum):
    """The codes of StateReasonCode and LastUpdateStatusReasonCode that Torpor can arrive at."""

    INVALID_SUBNET = "InvalidSubnet"
    INVALID_SECURITY_GROUP = "InvalidSecurityGroup"
    INSUFFICIENT_ROLE_PERMISSIONS = "InsufficientRolePermissions"


HTTP_INGRESS: Final = "HTTP_INGRESS"
ALL_INGRESS: Final = "ALL_INGRESS"
SHELL_INGRESS: Final = "SHELL_INGRESS"
NO_INGRESS: Final = "NO_INGRESS"
INTERNET_EGRESS: Final = "INTERNET_EGRESS"
MANAGED_INGRESS: Final = frozenset({HTTP_INGRESS, ALL_INGRESS, SHELL_INGRESS, NO_INGRESS})
NO_EGRESS: Final = "TORPOR_NO_EGRESS"
"""Ours: nothing leaves. AWS has no such connector; its own names are left to it."""
ALLOW_LIST: Final = "TORPOR_ALLOW_"
"""Ours: followed by the name of a list of domain names in the configuration."""
MANAGED_EGRESS: Final = frozenset({INTERNET_EGRESS, NO_EGRESS})


@dataclass(frozen=True, slots=True)
class ConnectorVersion:
    """One immutable configuration of a connector."""

    version: int
    state: ConnectorState
    state_reason: str | None
    state_reason_code: str | None
    configuration: dict[str, Any]
    """The wire's own shape: `{"VpcEgressConfiguration": {…}}`."""
    operator_role: str | None
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class Connector:
    """A customer's VPC egress connector, as Get shows it: the connector and one of its versions."""

    id: str
    """`nc-<uuid>`."""
    account: AccountId
    region: str
    name: str
    state: ConnectorState
    state_reason: str | None
    state_reason_code: str | None
    last_update_status: UpdateStatus | None
    last_update_reason: str | None
    last_update_reason_code: str | None
    latest_version: int
    created_at: datetime
    modified_at: datetime
    current: ConnectorVersion
    """The version shown; the latest, unless the identifier named another."""
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def arn(self) -> str:
        return f"arn:aws:lambda:{self.region}:{self.account}:network-connector:{self.id}"

    def version_arn(self, version: int) -> str:
        return f"{self.arn}:{version}"
