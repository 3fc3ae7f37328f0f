"""Amazon Resource Names, and the literal texts with which a wrong one is refused (spec 1.3, 1.11)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from torpor.model.errors import Denied, Invalid
from torpor.model.ids import AccountId, ImageName

AWS: Final = AccountId("aws")
"""What stands in the account's place in the ARN of a thing that AWS itself provides."""

_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_CONNECTOR: Final = re.compile(r"(?P<id>[a-zA-Z0-9_-]+)(:(?P<version>[1-9][0-9]{0,17}))?")
_MANAGED_CONNECTOR: Final = re.compile(r"aws-network-connector:(?P<id>[A-Za-z0-9_-]+)")


@dataclass(frozen=True, slots=True)
class Arn:
    """The six parts of any ARN; `resource` may hold colons of its own."""

    partition: str
    service: str
    region: str
    account: AccountId
    resource: str

    @classmethod
    def parse(cls, text: str) -> Arn | None:
        """None when the text is not an ARN at all."""
        parts = text.split(":", 5)
        if len(parts) != 6 or parts[0] != "arn" or not parts[1] or not parts[2] or not parts[5]:
            return None
        return cls(parts[1], parts[2], parts[3], AccountId(parts[4]), parts[5])

    def __str__(self) -> str:
        return f"arn:{self.partition}:{self.service}:{self.region}:{self.account}:{self.resource}"


@dataclass(frozen=True, slots=True)
class ImageArn:
    """`arn:aws:lambda:<region>:<account>:microvm-image:<name>`; a managed base image has the account `aws`."""

    region: str
    account: AccountId
    name: ImageName

    @classmethod
    def parse(cls, text: str) -> ImageArn:
        """The ARN that an operation on images was given.

        Raises:
            Invalid: `Invalid ARN format: <text>`.
            Denied: the slash form, which IAM knows and no policy allows (spec 1.3).
        """
        arn = Arn.parse(text)
        if arn is None or arn.service != "lambda":
            raise Invalid(f"Invalid ARN format: {text}")
        kind, _, name = arn.resource.partition(":")
        if kind != "microvm-image" or not _NAME.fullmatch(name):
            if arn.resource.startswith("microvm-image/"):
                raise Denied(None)
            raise Invalid(f"Invalid ARN format: {text}")
        return cls(arn.region, arn.account, ImageName(name))

    @classmethod
    def parse_for_run(cls, text: str) -> ImageArn:
        """The same for RunMicrovm, which words a bare name differently (spec 1.3).

        Raises:
            Invalid: `Malformed ARN - doesn't start with 'arn:'`, or as `parse`.
            Denied: as `parse`.
        """
        if not text.startswith("arn:"):
            raise Invalid("Malformed ARN - doesn't start with 'arn:'")
        return cls.parse(text)

    def __str__(self) -> str:
        return f"arn:aws:lambda:{self.region}:{self.account}:microvm-image:{self.name}"


@dataclass(frozen=True, slots=True)
class ConnectorArn:
    """A network connector: AWS's own by name, a customer's by id and perhaps version."""

    region: str
    account: AccountId
    id: str
    """`HTTP_INGRESS`, … for a managed one; `nc-<uuid>` for a customer's."""
    version: int | None = None

    @property
    def is_managed(self) -> bool:
        return self.account == AWS

    @classmethod
    def parse(cls, text: str) -> ConnectorArn:
        """Raises Invalid with `Malformed network connector ARN` (spec 1.11)."""
        arn = Arn.parse(text)
        if arn is None or arn.service != "lambda" or not arn.region:
            raise Invalid("Malformed network connector ARN")
        kind, _, rest = arn.resource.partition(":")
        found = (_MANAGED_CONNECTOR if arn.account == AWS else _CONNECTOR).fullmatch(rest)
        if kind != "network-connector" or found is None:
            raise Invalid("Malformed network connector ARN")
        version = found.groupdict().get("version")
        return cls(arn.region, arn.account, found["id"], int(version) if version else None)

    @property
    def unqualified(self) -> str:
        """Without a version."""
        inner = f"aws-network-connector:{self.id}" if self.is_managed else self.id
        return f"arn:aws:lambda:{self.region}:{self.account}:network-connector:{inner}"

    def __str__(self) -> str:
        return self.unqualified + (f":{self.version}" if self.version is not None else "")


def managed_connector(region: str, name: str) -> str:
    """The ARN of one of AWS's connectors (spec 8.1)."""
    return str(ConnectorArn(region, AWS, name))
