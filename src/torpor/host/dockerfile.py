"""What a Dockerfile's FROM lines say, as far as the host needs it before the build; buildah decides what they mean.

Nothing here has to be right for every Dockerfile: a wrong answer costs time, never the result.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from torpor.host.setup.container_base import stored_name
from torpor.model.errors import SetupFailed

CONTINUATION: Final = re.compile(r"\\[ \t]*\r?\n")
FROM: Final = re.compile(r"FROM\s+(?:--\S+\s+)*(?P<image>\S+)(?:\s+AS\s+(?P<stage>\S+))?\s*", re.IGNORECASE)
ARGUMENT: Final = re.compile(r"ARG\s+(?P<name>\w+)=(?P<value>\S*)\s*", re.IGNORECASE)
VARIABLE: Final = re.compile(r"\$(?:(?P<plain>\w+)|\{(?P<name>\w+)(?::-(?P<otherwise>[^}]*))?\})")


def mapped_names(dockerfile: str, base_images: Mapping[str, str]) -> list[tuple[str, str]]:
    """Configured names that this Dockerfile can mean, each with its base; with a variable in its FROM, all of them."""
    froms = [line for line in dockerfile.splitlines() if line.strip()[:5].upper() == "FROM "]
    is_open = any("$" in line for line in froms) or "# syntax" in dockerfile
    return [(asked, base) for asked, base in base_images.items() if is_open or asked in dockerfile]


def base_of(dockerfile: str, base_images: Mapping[str, str]) -> str | None:
    """The base of the last stage, as buildah stores it (`stored_name`); None when it is not an image's name."""
    stages: dict[str, str] = {}
    last = None
    for image, stage in _froms(dockerfile):
        last = stages.get(image.lower(), image)
        if stage is not None:
            stages[stage.lower()] = last
    if last is None:
        return None
    try:
        return stored_name(base_images.get(last, last))
    except SetupFailed:
        return None


def _froms(dockerfile: str) -> Iterator[tuple[str, str | None]]:
    """Image and stage of each FROM, with the values that ARG lines before the first one give to variables."""
    values: dict[str, str] = {}
    is_before = True
    for line in CONTINUATION.sub(" ", dockerfile).splitlines():
        if is_before and (found := ARGUMENT.fullmatch(line.strip())):
            values[found["name"]] = found["value"].strip("\"'")
        elif found := FROM.fullmatch(line.strip()):
            is_before = False
            yield _filled(found["image"], values), found["stage"]


def _filled(text: str, values: Mapping[str, str]) -> str:
    return VARIABLE.sub(lambda v: values.get(v["plain"] or v["name"], "") or v["otherwise"] or "", text)
