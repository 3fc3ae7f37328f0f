"""What a slot is told about the VM that gets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from torpor.model.egress import INTERNET, Egress


@dataclass(frozen=True, slots=True)
class Tenant:
    """Kept in the note beside the VMM, so that a restarted service can go on with it."""

    egress: Egress = INTERNET
    bandwidth: int | None = None
    """Bytes per second through the traffic address, both directions together; None is no limit."""
    role: str | None = None
    """ARN of the role whose credentials the metadata service gives out; None: none are."""

    def without_role(self) -> Tenant:
        """What decides about its rules."""
        return replace(self, role=None)

    def document(self) -> dict[str, Any]:
        return {"egress": self.egress.document(), "bandwidth": self.bandwidth, "role": self.role}

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Tenant:
        """What `document` wrote. Raises KeyError, TypeError, ValueError."""
        return cls(Egress.read(document["egress"]), document["bandwidth"], document["role"])


ANYBODY: Final = Tenant()
"""What a slot is made for ahead of its time; builds are that too unless their image says otherwise."""
