"""A simulated build: the Dockerfile is read, not run."""

from __future__ import annotations

from torpor.host.artifact import DOCKERFILE, CodeArtifact
from torpor.host.base import BuildLine
from torpor.model.errors import BuildFailed


async def simulate_dockerfile(artifact: CodeArtifact, on_line: BuildLine) -> None:
    """Say each instruction; a `RUN` of `false` or `exit N` fails as it would."""
    instructions = [line.strip() for line in artifact.read(DOCKERFILE).decode(errors="replace").splitlines()]
    instructions = [line for line in instructions if line and not line.startswith("#")]
    for number, line in enumerate(instructions, 1):
        await on_line("build", f"STEP {number}/{len(instructions)}: {line}")
        word, _, command = line.partition(" ")
        fails = command.strip() == "false" or (command.startswith("exit ") and command.strip() != "exit 0")
        if word.upper() == "RUN" and fails:
            raise BuildFailed("The container image build failed.")
    if not any(line.upper().startswith("FROM ") for line in instructions):
        await on_line("build", "the Dockerfile has no FROM")
        raise BuildFailed("The container image build failed.")
