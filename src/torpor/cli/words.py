"""Durations, sizes and moments as people read them."""

from __future__ import annotations

from datetime import datetime


def seconds(value: float) -> str:
    """`0.134 s`, `4.2 s`, `3 min 05 s`, `2 h 07 min`."""
    if round(value, 3) < 1:
        return f"{max(value, 0):.3f} s"
    if round(value, 1) < 120:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def size(value: float | None) -> str:
    """Bytes in binary units: `512 B`, `1.5 GiB`; `-` when not known."""
    if value is None:
        return "-"
    if value < 1024:
        return f"{value:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if round(value, 1) < 1024:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} TiB"


def short(passed: float) -> str:
    """Whole units of a time span in seconds: `12s`, `5m`, `3h`, `2d`; 0 for what lies ahead."""
    whole = max(0, int(passed))
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "m"), (172800, 3600, "h")):
        if whole < limit:
            return f"{whole // divisor}{unit}"
    return f"{whole // 86400}d"


def age(moment: datetime, now: datetime) -> str:
    """How long ago a moment was."""
    return short((now - moment).total_seconds())
