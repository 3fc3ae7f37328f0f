"""What CreateMicrovmImage and UpdateMicrovmImage ask for, and the prose checks on it (spec 1.11, 2.1).

The constraints of AWS's model are checked before, all together. These checks come one at a time, in this order: base
image, memory size, code artifact, environment, hooks, architecture.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torpor.config import ImageSettings
from torpor.control.managed import Managed
from torpor.model.caller import Caller
from torpor.model.errors import Invalid
from torpor.model.hooks import Hook, Hooks
from torpor.model.sizes import DEFAULT_MEMORY_MIB, SIZES

PLATFORM_VARIABLES: Final = (
    "AWS_LAMBDA_MICROVM_IMAGE_NAME",
    "AWS_LAMBDA_MICROVM_IMAGE_ARN",
    "AWS_LAMBDA_MICROVM_IMAGE_VERSION",
    "AWS_REGION",
)
"""What every application finds in its environment (spec 2.6), and therefore nobody may set."""

RUNTIME_HOOKS: Final = (Hook.RUN, Hook.RESUME, Hook.SUSPEND, Hook.TERMINATE)

_S3_URI: Final = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]/.+", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One request, parsed. Update replaces all of it: nothing is inherited (spec 2.1)."""

    base_image_arn: str
    base_image_version: str | None
    build_role_arn: str
    code_artifact_uri: str
    description: str | None = None
    memory_mib: int | None = None
    hooks: Hooks = field(default_factory=Hooks)
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    all_capabilities: bool = False
    egress_connectors: tuple[str, ...] | None = None
    request: dict[str, Any] = field(default_factory=dict)
    """Members that are only echoed, under AWS's names."""

    def plain(self) -> dict[str, Any]:
        """Everything, for comparing two requests under one client token."""
        return {
            "base_image_arn": self.base_image_arn,
            "base_image_version": self.base_image_version,
            "build_role_arn": self.build_role_arn,
            "code_artifact_uri": self.code_artifact_uri,
            "description": self.description,
            "memory_mib": self.memory_mib,
            "port": self.hooks.port,
            "hooks": {hook.value: timeout.total_seconds() for hook, timeout in self.hooks.enabled.items()},
            "environment": self.environment,
            "all_capabilities": self.all_capabilities,
            "egress_connectors": self.egress_connectors,
            "request": self.request,
        }


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the request leaves open, filled in."""

    base_image_version: str
    memory_mib: int


def check(
    caller: Caller, request: ImageRequest, managed: Managed, settings: ImageSettings, architecture: str
) -> Resolved:
    """Raises Invalid with the literal text of the first thing that is wrong."""
    base_version = managed.resolve(caller, request.base_image_arn, request.base_image_version)
    memory_mib = DEFAULT_MEMORY_MIB if request.memory_mib is None else request.memory_mib
    if memory_mib not in SIZES:
        raise Invalid(
            f"The requested memory size of {memory_mib} MiB is not supported by base MicroVM image "
            f"{request.base_image_arn}. Supported memory sizes in MiB are: {list(SIZES)}."
        )
    if not _S3_URI.fullmatch(request.code_artifact_uri):
        raise Invalid("CodeArtifact URI must be a valid S3 URI in the format: s3://<bucket>/<key>")
    for name in request.environment:
        if name in PLATFORM_VARIABLES:
            raise Invalid(f"Environment variable key '{name}' is reserved")
    _check_hooks(request.hooks)
    if settings.strict_architecture:
        _check_architecture(request.request, architecture)
    return Resolved(base_version, memory_mib)


def _check_hooks(hooks: Hooks) -> None:
    if any(hook in hooks.enabled for hook in RUNTIME_HOOKS) and Hook.READY not in hooks.enabled:
        raise Invalid(
            "The ready (/ready) MicroVM image hook must be enabled when any MicroVM lifecycle hook "
            "(run, resume, suspend, or terminate) is enabled."
        )
    if hooks.enabled and hooks.port is None:
        raise Invalid("The hooks port must be specified when any hook is enabled.")


def _check_architecture(asked: Mapping[str, Any], architecture: str) -> None:
    for configuration in asked.get("cpuConfigurations") or ():
        if configuration.get("architecture") != architecture:
            raise Invalid(
                f"The requested architecture {configuration.get('architecture')} is not supported. "
                f"Supported architectures are: [{architecture}]."
            )


def platform_environment(region: str, image_name: str, image_arn: str, version: str) -> dict[str, str]:
    """The variables of `PLATFORM_VARIABLES` for one version."""
    return dict(zip(PLATFORM_VARIABLES, (image_name, image_arn, version, region), strict=True))
