"""What a connector must have, and what its subnets and groups must be (spec 8.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from torpor.config import NetworkSettings
from torpor.model.connector import ReasonCode
from torpor.model.errors import InvalidParameter

VPC_EGRESS: Final = "VPC_EGRESS"
_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_SUBNET: Final = re.compile(r"subnet-[0-9a-z]+")
_SECURITY_GROUP: Final = re.compile(r"sg-[0-9a-zA-Z]+")


def check_name(name: str) -> None:
    """The model lets an ARN through as a name; a name it is not."""
    if not _NAME.fullmatch(name):
        raise InvalidParameter("Name must satisfy regular expression pattern: [a-zA-Z0-9_-]{1,64}")


def check_configuration(configuration: Mapping[str, Any] | None) -> None:
    """The members that the model calls optional and the service does not."""
    vpc = (configuration or {}).get("VpcEgressConfiguration")
    if vpc is None:
        raise InvalidParameter("VpcEgressConfiguration cannot be null or empty for VPC_EGRESS connector")
    for member in ("NetworkProtocol", "SubnetIds", "AssociatedComputeResourceTypes"):
        if not vpc.get(member):
            raise InvalidParameter(f"{member} cannot be null or empty for VPC_EGRESS connector")


def check_role(role: str | None) -> None:
    if not role:
        raise InvalidParameter("NetworkConnectorOperatorRole is required for VPC_EGRESS connector type")


def verdict(configuration: Mapping[str, Any], settings: NetworkSettings) -> tuple[ReasonCode, str] | None:
    """Why the configuration cannot work, None when it can. Found out while the connector is PENDING.

    With nothing configured any well-formed id is taken; otherwise it must be a configured one, and all of them must
    be in one VPC.
    """
    vpc = configuration["VpcEgressConfiguration"]
    vpcs: set[str] = set()
    checks = (
        ("SubnetIds", _SUBNET, settings.subnets, ReasonCode.INVALID_SUBNET, "subnet"),
        ("SecurityGroupIds", _SECURITY_GROUP, settings.security_groups, ReasonCode.INVALID_SECURITY_GROUP,
         "security group"),
    )
    for member, pattern, known, code, word in checks:
        for identity in vpc.get(member) or ():
            if not pattern.fullmatch(identity) or (known and identity not in known):
                return code, f"The {word} {identity} does not exist"
            home = known.get(identity, {}).get("vpc")
            vpcs |= {home} if home else set()
            if len(vpcs) > 1:
                return code, f"The {word} {identity} is not in the same VPC as the others"
    return None
