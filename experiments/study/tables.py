"""Markdown tables, and how their numbers look."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(share: float) -> str:
    """``93.1``."""
    return f"{100 * share:.1f}"


def nats(divergence: float) -> str:
    """``0.0123``."""
    return f"{divergence:.4f}"


def millions(flops: float) -> str:
    """``177M``."""
    return f"{flops / 1e6:.0f}M"


def chance(p: float) -> str:
    """``0.012``; ``<0.001``."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def spread(mean: float, deviation: float, digits: int) -> str:
    """``0.91 ± 0.02``."""
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"
