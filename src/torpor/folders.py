"""The folders of a data directory, each of which may be a disk of its own."""

from __future__ import annotations

from typing import Final

ARTEFACTS: Final = "artefacts"
"""What setup makes: kernels, the agent, root file systems."""
AUDIT: Final = "audit"
CA: Final = "ca"
"""The certificates of endpoints, and their keys."""
CACHE: Final = "cache"
LOGS: Final = "logs"
"""Lines of applications, and what Envoy, the embedded S3 and the walls around microVMs write."""
OBJECTS: Final = "s3"
"""What lies in the buckets."""
SIMULATED: Final = "simulated"
"""All of the simulated engine's."""

FOLDERS: Final = (ARTEFACTS, AUDIT, CA, CACHE, LOGS, OBJECTS, SIMULATED)
