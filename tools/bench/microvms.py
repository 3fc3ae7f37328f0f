"""What measurements ask of single microVMs through the public API."""

from __future__ import annotations

import time
from typing import Any, Final

POLL: Final = 0.005
PATIENCE: Final = 60.0
IDLE_POLICY: Final = {
    "maxIdleDurationSeconds": 28800, "suspendedDurationSeconds": 28800, "autoResumeEnabled": True,
}  # fmt: skip
"""Nothing sleeps or ends by itself while it is measured."""


class Wrong(Exception):
    """Something went otherwise than it must; the message says how."""


def token(client: Any, microvm_id: str) -> dict[str, str]:
    """The header that opens port 8080 for an hour."""
    answer: dict[str, str] = client.create_microvm_auth_token(
        microvmIdentifier=microvm_id, expirationInMinutes=60, allowedPorts=[{"port": 8080}])["authToken"]
    return answer


def reach(client: Any, microvm_id: str, state: str, *, patience: float = PATIENCE, poll: float = POLL) -> None:
    """Wait for a state; seconds. Raises Wrong when it cannot be reached any more, or not in time."""
    deadline = time.monotonic() + patience
    while (found := client.get_microvm(microvmIdentifier=microvm_id))["state"] != state:
        if found["state"] == "TERMINATED" or time.monotonic() > deadline:
            raise Wrong(f"it is {found['state']} ({found.get('stateReason')}) instead of {state}")
        time.sleep(poll)
