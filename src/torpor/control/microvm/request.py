"""RunMicrovm's request: what it asks for, the order in which it is refused, and its defaults (spec 1.11, 4.1)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, Final

from torpor.control.idempotency import Claim, claim
from torpor.control.microvm.neighbours import Neighbours
from torpor.model.arn import ImageArn
from torpor.model.caller import Caller
from torpor.model.errors import Invalid
from torpor.model.hooks import Hook
from torpor.model.image import Image, ImageVersion
from torpor.model.microvm import IdlePolicy

LONGEST: Final = timedelta(seconds=28_800)
OPERATION: Final = "RunMicrovm"


@dataclass(frozen=True, slots=True)
class RunRequest:
    """What a caller of RunMicrovm may say; None is what was not said."""

    image_identifier: str
    image_version: str | None = None
    execution_role_arn: str | None = None
    idle_policy: IdlePolicy | None = None
    logging: dict[str, Any] | None = None
    kms_key_identifier: str | None = None
    run_hook_payload: str | None = None
    maximum_duration: timedelta | None = None
    ingress: tuple[str, ...] | None = None
    egress: tuple[str, ...] | None = None
    client_token: str | None = None

    def claim(self, caller: Caller) -> Claim | None:
        """What its client token stands for."""
        if self.client_token is None:
            return None
        asked = {name: getattr(self, name) for name in _ASKED}
        policy = self.idle_policy
        asked["idle_policy"] = policy and {name: getattr(policy, name) for name in _OF_IDLE_POLICY}
        return claim(caller, OPERATION, self.client_token, asked)


_OF_IDLE_POLICY: Final = tuple(field.name for field in fields(IdlePolicy))
_ASKED: Final = tuple(field.name for field in fields(RunRequest) if field.name != "client_token")


@dataclass(frozen=True, slots=True)
class Resolved:
    """A request that may be fulfilled, with everything it left out filled in."""

    image: Image
    version: ImageVersion
    snapshot: str
    ingress: tuple[str, ...]
    egress: tuple[str, ...]
    maximum_duration: timedelta


async def resolve(caller: Caller, request: RunRequest, neighbours: Neighbours, *, is_fresh: bool) -> Resolved:
    """Check the request, one thing at a time; against what is remembered of the image unless it must be fresh.

    Raises:
        Refused: with AWS's text for the first thing that is wrong.
    """
    images, connectors = neighbours.images, neighbours.connectors
    ImageArn.parse_for_run(request.image_identifier)
    if is_logged(request.logging) and request.execution_role_arn is None:
        raise Invalid("Logging cannot be enabled without providing executionRoleArn")
    ingress = await connectors.ingress(caller, request.ingress or None)
    await connectors.egress(caller, request.egress or None)
    wanted = (caller, request.image_identifier, request.image_version)
    remembered = None if is_fresh else images.remembered(*wanted)
    image, version, snapshot = remembered or await images.runnable(*wanted)
    if request.run_hook_payload is not None and version.hooks.timeout(Hook.RUN) is None:
        raise Invalid("The run hook must be enabled in the MicroVM image to pass the run hook payload")
    egress = await connectors.egress(caller, request.egress or None, version.egress_connectors)
    return Resolved(image, version, snapshot, ingress, egress, request.maximum_duration or LONGEST)


def is_logged(logging: dict[str, Any] | None) -> bool:
    """Whether the request asks for logs; `{"disabled": {}}` and an empty block do not."""
    return bool(logging) and "disabled" not in (logging or {})
