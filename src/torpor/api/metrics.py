"""`/metrics` in Prometheus' text format: sums of the whole service, without names of anybody's things.

It is open as `/health` is: whoever reaches the API's port may read it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Final

from torpor import __version__
from torpor.api.errors import Answer
from torpor.control import Control
from torpor.model.forwarding import ForwardingState
from torpor.model.microvm import MicrovmState

METRICS_PATH: Final = "/metrics"
CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
MOST_NAMES: Final = 500
"""Operations told apart; their names are ours, so this many never come."""
_HELP: Final = {
    "running_seconds": "Seconds microVMs ran", "asleep_seconds": "Seconds microVMs were suspended",
    "vcpu_seconds": "Baseline vCPU-seconds", "vcpu_seconds_above": "vCPU-seconds used above the baseline",
    "gb_seconds": "Baseline GB-seconds", "gb_seconds_above": "GB-seconds used above the baseline",
    "asleep_vcpu_seconds": "Baseline vCPU-seconds of the time asleep",
    "asleep_gb_seconds": "Baseline GB-seconds of the time asleep",
    "read_bytes": "Bytes of the snapshots that launches and resumes read",
    "written_bytes": "Bytes that suspends wrote", "stored_gb_hours": "GB-hours of stored snapshots",
    "launches": "Launches", "resumes": "Resumes", "suspends": "Suspends",
}

Labels = Mapping[str, str]


class Answered:
    """How often each operation was answered with which status."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, int]] = Counter()

    def count(self, name: str, status: int) -> None:
        if (name, status) in self._counts or len(self._counts) < MOST_NAMES:
            self._counts[name, status] += 1

    def samples(self) -> Iterable[tuple[Labels, float]]:
        return [({"operation": name, "code": str(status)}, count) for (name, status), count in self._counts.items()]


async def metrics(control: Control, answered: Answered) -> Answer:
    stats = await control.host.stats()
    states = Counter(microvm.state for microvm in control.microvms.all())
    parts = [
        _family("torpor_info", "gauge", "This service",
                [({"version": __version__, "engine": stats.engine, "acceleration": stats.acceleration}, 1)]),
        _family("torpor_microvms", "gauge", "MicroVMs by state",
                [({"state": state.value}, states[state]) for state in MicrovmState if state.value != "TERMINATED"]),
        _family("torpor_host_memory_bytes", "gauge", "Memory of the machine", [({}, stats.memory_bytes)]),
        _family("torpor_vmm_memory_bytes", "gauge", "Private memory of all VMMs", [({}, stats.memory_used_bytes)]),
        _family("torpor_disk_free_bytes", "gauge", "Free space where microVMs are kept", [({}, stats.disk_free_bytes)]),
        _family("torpor_api_requests_total", "counter", "Answers of the API", answered.samples()),
    ]
    total = control.metering.total()
    for field in fields(total):
        name = f"torpor_used_{field.name}_total"
        parts.append(_family(name, "counter", _HELP[field.name], [({}, getattr(total, field.name))]))
    if control.forwarding is not None:
        parts += _forwarding(control.forwarding.state())
    return Answer(200, "".join(parts).encode(), content_type=CONTENT_TYPE)


def _forwarding(state: ForwardingState) -> list[str]:
    lost: list[tuple[Labels, float]] = [({"reason": "removed"}, state.lost), ({"reason": "refused"}, state.refused)]
    return [
        _family("torpor_forwarded_lines_total", "counter", "Log lines that were forwarded", [({}, state.lines)]),
        _family("torpor_forwarding_lost_lines_total", "counter",
                "Log lines that were removed before they could be forwarded, or refused by the destination", lost),
        _family("torpor_forwarding_behind_seconds", "gauge", "Age of the oldest log line that waits",
                [({}, state.behind_seconds)]),
        _family("torpor_forwarding_waiting_streams", "gauge", "Log streams with lines that wait",
                [({}, state.waiting_streams)]),
        _family("torpor_forwarding_up", "gauge", "0 while the destination takes nothing, or nothing of a log group",
                [({}, state.is_up)]),
    ]


def _family(name: str, kind: str, text: str, samples: Iterable[tuple[Labels, float]]) -> str:
    lines = [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        shown = ",".join(f'{key}="{_escaped(label)}"' for key, label in labels.items())
        lines.append(f"{name}{{{shown}}} {_number(value)}" if shown else f"{name} {_number(value)}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
