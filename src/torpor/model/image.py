"""Images, their immutable versions, and the builds that make a version's snapshot (spec 1.4, 1.5, 2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from torpor.model.errors import IllegalTransition
from torpor.model.hooks import Hooks
from torpor.model.ids import AccountId, BuildId, ImageName


class ImageState(StrEnum):
    CREATING = "CREATING"
    CREATED = "CREATED"
    CREATE_FAILED = "CREATE_FAILED"
    UPDATING = "UPDATING"
    UPDATED = "UPDATED"
    UPDATE_FAILED = "UPDATE_FAILED"
    DELETING = "DELETING"
    DELETE_FAILED = "DELETE_FAILED"
    DELETED = "DELETED"


class VersionState(StrEnum):
    PENDING = "PENDING"
    IN_PROGRESS = "IN_PROGRESS"
    SUCCESSFUL = "SUCCESSFUL"
    FAILED = "FAILED"
    DELETING = "DELETING"
    DELETED = "DELETED"
    DELETE_FAILED = "DELETE_FAILED"


class VersionStatus(StrEnum):
    ACTIVE = "ACTIVE"
    INACTIVE = "INACTIVE"


class BuildState(StrEnum):
    PENDING = "PENDING"
    IN_PROGRESS = "IN_PROGRESS"
    SUCCESSFUL = "SUCCESSFUL"
    FAILED = "FAILED"


class ImageCause(StrEnum):
    BUILT = "built"
    BUILD_FAILED = "build failed"
    UPDATE_CALLED = "update called"
    VERSION_DELETE_CALLED = "version delete called"
    VERSION_DELETED = "version deleted"
    DELETE_CALLED = "delete called"
    DELETED = "deleted"
    DELETE_FAILED = "delete failed"


S, C = ImageState, ImageCause
RESTING: Final = (S.CREATED, S.CREATE_FAILED, S.UPDATED, S.UPDATE_FAILED, S.DELETE_FAILED)
"""The states in which nothing is under way."""
RUNNABLE: Final = (S.CREATED, S.UPDATED)
"""The states that allow RunMicrovm (spec 1.5)."""

IMAGE_TRANSITIONS: Final[dict[tuple[ImageState, ImageCause], ImageState]] = {
    (S.CREATING, C.BUILT): S.CREATED,
    (S.CREATING, C.BUILD_FAILED): S.CREATE_FAILED,
    (S.UPDATING, C.BUILT): S.UPDATED,
    (S.UPDATING, C.BUILD_FAILED): S.UPDATE_FAILED,
    (S.UPDATING, C.VERSION_DELETED): S.UPDATED,
    (S.DELETING, C.DELETED): S.DELETED,
    (S.DELETING, C.DELETE_FAILED): S.DELETE_FAILED,
    **{(s, C.UPDATE_CALLED): S.UPDATING for s in RESTING},
    **{(s, C.VERSION_DELETE_CALLED): S.UPDATING for s in RESTING},
    **{(s, C.DELETE_CALLED): S.DELETING for s in RESTING},
}


def image_after(state: ImageState, cause: ImageCause) -> ImageState:
    """The state that follows; raises `IllegalTransition` when the table has no such move."""
    try:
        return IMAGE_TRANSITIONS[state, cause]
    except KeyError:
        raise IllegalTransition(state, cause) from None


@dataclass(frozen=True, slots=True)
class Image:
    """The named thing; its versions carry everything that was asked for."""

    id: str
    account: AccountId
    region: str
    name: ImageName
    state: ImageState
    created_at: datetime
    updated_at: datetime
    latest_active_version: str | None = None
    latest_failed_version: str | None = None
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def arn(self) -> str:
        return f"arn:aws:lambda:{self.region}:{self.account}:microvm-image:{self.name}"


@dataclass(frozen=True, slots=True)
class ImageVersion:
    """One immutable version: the whole build request, as echoed (spec 1.8), and how it stands."""

    image_arn: str
    version: str
    """`1.0`, `2.0`, … (spec 1.4)."""
    state: VersionState
    status: VersionStatus
    state_reason: str | None
    created_at: datetime
    updated_at: datetime
    base_image_arn: str
    base_image_version: str
    build_role_arn: str
    code_artifact_uri: str
    memory_mib: int
    hooks: Hooks
    environment: dict[str, str]
    all_capabilities: bool
    egress_connectors: tuple[str, ...]
    description: str | None = None
    request: dict[str, object] = field(default_factory=dict)
    """The members of the request that are only echoed (logging, cpuConfigurations, kmsKeyIdentifier, raw hooks …)."""


@dataclass(frozen=True, slots=True)
class SnapshotSizes:
    """Bytes, as `snapshotBuild` reports them (spec 2.3); None where the build did not get that far."""

    memory_bytes: int | None
    code_install_bytes: int | None
    disk_bytes: int | None


@dataclass(frozen=True, slots=True)
class Build:
    """One attempt to make a version's snapshot for one CPU kind."""

    build_id: BuildId
    image_arn: str
    version: str
    state: BuildState
    state_reason: str | None
    created_at: datetime
    architecture: str
    chipset: str
    chipset_generation: str
    sizes: SnapshotSizes | None = None
