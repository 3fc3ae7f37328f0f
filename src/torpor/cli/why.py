"""Why a microVM is awake, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from torpor.cli.calls import microvm_id
from torpor.cli.connection import connect
from torpor.cli.options import data_dir_option
from torpor.cli.output import json_option, out, print_json
from torpor.cli.words import short

REASONS: Final = {
    "traffic": "{active} {ago} ago, and it may be idle for {idle}",
    "held": "{holds}",
    "no-idle-policy": "it was launched without an idle policy, so nothing suspends it but `torpor suspend`",
    "suspend-failed": "it was idle, and suspending it failed; that is tried again",
    "launching": "it is being launched",
    "suspending": "it is being suspended",
    "asleep": "it is asleep; {wakes}",
    "application-exited": "its application has ended, and it will follow",
    "ended": "it has been terminated",
}


@click.command(short_help="Say why a microVM is awake, and until when.")
@click.argument("microvm")
@data_dir_option
@json_option
def why(microvm: str, data_dir: Path | None, as_json: bool) -> None:
    """Say why MICROVM is awake and when it will sleep or end, from what its idle policy looks at.

    Only bytes through the endpoint count, in either direction. Open streams that carry none do not; commands and
    copies (`torpor exec`, `torpor cp`) hold a microVM awake while they go on.
    """
    service = connect(data_dir)
    found = service.ask("GET", f"/microvms/{microvm_id(service, microvm)}/why-awake")
    if as_json:
        print_json(found)
        return
    for line in sentences(found):
        out.print(line, markup=False)


def sentences(found: dict[str, Any]) -> Iterator[str]:
    """The reason, then the facts behind it."""
    now = found["now"]
    holds = [f"a {each['kind']} of {each['actor']} goes on since {short(now - each['since'])}"
             for each in found["holds"]]  # fmt: skip
    words = {
        "active": "its endpoint carried traffic" if found["lastByteAt"] else "it was launched, woken or asked",
        "ago": short(now - found["lastActiveAt"]),
        "idle": short(found["maxIdleSeconds"] or 0),
        "holds": "; ".join(holds),
        "wakes": "traffic wakes it" if found["autoResume"] else "only `torpor resume` wakes it",
    }
    yield f"{found['state']}: {REASONS[found['reason']].format(**words)}"
    if found["state"] not in ("TERMINATING", "TERMINATED"):
        last = found["lastByteAt"]
        yield f"last byte      {'none yet' if last is None else f'{short(now - last)} ago'}"
        yield f"open requests  {found['openRequests']}"
    if found["suspendsAt"] is not None:
        yield f"sleeps         in {short(found['suspendsAt'] - now)}, unless a byte crosses its endpoint before"
    if found["endsAt"] is not None and found["reason"] != "ended":
        yield f"ends           in {short(found['endsAt'] - now)}"
