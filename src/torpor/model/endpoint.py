"""What a token of an endpoint allows (spec 5.3, 7)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from torpor.model.ids import MicrovmId

LAST_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class PortRange:
    """From `start` to `end`, both included."""

    start: int
    end: int

    def __contains__(self, port: int) -> bool:
        return self.start <= port <= self.end


ALL_PORTS: Final = PortRange(1, LAST_PORT)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token says: one microVM, some ports or a shell, until a moment."""

    microvm_id: MicrovmId
    ports: tuple[PortRange, ...]
    """Empty for a shell."""
    expires_at: datetime
    is_shell: bool = False

    def allows(self, port: int) -> bool:
        return any(port in ports for ports in self.ports)
