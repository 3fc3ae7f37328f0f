"""Percentiles, and tables of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

PERCENTILES = (50, 95, 99)


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest rank: a value that was really measured."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def summary(values: Sequence[float], digits: int = 4) -> dict[str, Any]:
    """`p50`, `p95`, `p99` in the unit of the values, and `n`."""
    figures: dict[str, Any] = {f"p{p}": round(percentile(values, p), digits) for p in PERCENTILES}
    return figures | {"n": len(values)}


def print_figures(title: str, unit: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """One row per measurement."""
    table = Table(title=f"{title} ({unit})", title_justify="left")
    table.add_column("")
    for name in ("p50", "p95", "p99", "n"):
        table.add_column(name, justify="right")
    for name, figures in rows.items():
        table.add_row(name, *(_shown(figures[key]) for key in ("p50", "p95", "p99", "n")))
    Console(highlight=False).print(table)


def print_steps(title: str, steps: Mapping[str, float]) -> None:
    """Where the time of one action goes, longest first."""
    table = Table(title=title, title_justify="left")
    table.add_column("step")
    table.add_column("p50 (s)", justify="right")
    for name, value in sorted(steps.items(), key=lambda item: -item[1]):
        table.add_row(name, f"{value:.4f}")
    Console(highlight=False).print(table)


def medians(samples: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The median of each named step over all samples that have it."""
    by_name: dict[str, list[float]] = {}
    for sample in samples:
        for name, value in sample.items():
            by_name.setdefault(name, []).append(value)
    return {name: round(percentile(values, 50), 4) for name, values in by_name.items()}


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
