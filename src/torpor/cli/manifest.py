"""`torpor.toml` in an image's directory: what CreateMicrovmImage is asked besides the code."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from torpor.cli.code_zip import DOCKERFILE
from torpor.cli.output import fail

FILE: Final = "torpor.toml"
BASE: Final = "al2023-1"
IMAGE_HOOKS: Final = ("ready", "validate")
RUNTIME_HOOKS: Final = ("run", "resume", "suspend", "terminate")
HOOK_PORT: Final = 8080
"""Where the hooks are called unless `port` says otherwise: the default of endpoints as well."""
KINDS: Final = {str: "text", int: "a whole number", bool: "true or false", dict: "a table"}


@dataclass(frozen=True, slots=True)
class Manifest:
    name: str
    memory_mib: int = 2048
    """Baseline: 512, 1024, 2048, 4096 or 8192."""
    description: str = ""
    all_capabilities: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    hooks: dict[str, int] = field(default_factory=dict)
    """`port`, and per hook its timeout in seconds; a hook that is not named is not called."""

    def members(self, region: str, account: str, uri: str) -> dict[str, Any]:
        """Of CreateMicrovmImage and UpdateMicrovmImage."""
        found: dict[str, Any] = {
            "baseImageArn": f"arn:aws:lambda:{region}:aws:microvm-image:{BASE}",
            "buildRoleArn": f"arn:aws:iam::{account}:role/torpor-build",
            "codeArtifact": {"uri": uri},
            "resources": [{"minimumMemoryInMiB": self.memory_mib}],
        }
        if self.description:
            found["description"] = self.description
        if self.all_capabilities:
            found["additionalOsCapabilities"] = ["ALL"]
        if self.environment:
            found["environmentVariables"] = self.environment
        if hooks := self._hooks():
            found["hooks"] = hooks
        return found

    def _hooks(self) -> dict[str, Any]:
        def group(names: tuple[str, ...]) -> dict[str, Any]:
            return {
                member: value
                for name in names if name in self.hooks
                for member, value in ((name, "ENABLED"), (f"{name}TimeoutInSeconds", self.hooks[name]))
            }  # fmt: skip

        groups = {"microvmImageHooks": group(IMAGE_HOOKS), "microvmHooks": group(RUNTIME_HOOKS)}
        members: dict[str, Any] = {name: value for name, value in groups.items() if value}
        return {"port": self.hooks.get("port", HOOK_PORT), **members} if members else {}


def read_manifest(directory: Path, **overrides: Any) -> Manifest:
    """`torpor.toml` of a directory, or what is usual without one; ends the command when it is not right."""
    if not (directory / DOCKERFILE).is_file():
        fail(f"{directory} has no Dockerfile", "A Dockerfile at its root says how the application is built.")
    file = directory / FILE
    try:
        document = tomllib.loads(file.read_text()) if file.is_file() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        fail(f"{file} is not TOML: {error}")
    _check(file, document)
    document = {"name": directory.resolve().name} | document
    return Manifest(**document | {name: value for name, value in overrides.items() if value is not None})


def _check(file: Path, document: dict[str, Any]) -> None:
    known = {each.name: each for each in fields(Manifest)}
    usual = Manifest(name="")
    wrong = [name for name in document if name not in known]
    for name in known.keys() & document.keys():
        _check_kind(file, name, document[name], type(getattr(usual, name)))
    for name, value in document.get("environment", {}).items():
        _check_kind(file, f"environment.{name}", value, str)
    for name, value in document.get("hooks", {}).items():
        if name not in ("port", *IMAGE_HOOKS, *RUNTIME_HOOKS):
            wrong.append(f"hooks.{name}")
        _check_kind(file, f"hooks.{name}", value, int)
    if wrong:
        fail(f"{file} has unknown settings: {', '.join(sorted(wrong))}",
             f"Known are {', '.join(known)}; hooks are port, {', '.join((*IMAGE_HOOKS, *RUNTIME_HOOKS))}.")  # fmt: skip


def _check_kind(file: Path, name: str, value: Any, kind: type) -> None:
    if type(value) is not kind:
        fail(f"{name} in {file} must be {KINDS[kind]}, not {value!r}")
