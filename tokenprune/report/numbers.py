"""How numbers look in tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def engineering(value: float) -> str:
    """A number of three digits with an SI prefix: ``1.23G``."""
    for prefix in ("", "k", "M", "G", "T"):
        if value < 999.5:
            return f"{value:.3g}{prefix}"
        value /= 1000
    return f"{value:.3g}P"


def percent(share: float | None, deviation: float | None = None) -> str:
    """A share in per cent: ``93.1``, with a deviation ``93.1 ± 0.4``; ``-`` if there is nothing."""
    if share is None:
        return "-"
    return f"{100 * share:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def chance(p: float) -> str:
    """A probability of two digits: ``0.012``, ``3e-09``."""
    return f"{p:.2g}" if p >= 1e-4 else f"{p:.0e}"


def budget(values: Mapping[str, Any]) -> str:
    """A budget as text: ``keep_tokens=48``; ``all`` of an empty one."""
    texts = [f"{key}={engineering(value) if key == 'flops' else value}" for key, value in values.items()]
    return " ".join(texts) or "all"


def published_budget(values: Mapping[str, float]) -> str:
    """A budget as papers print it: ``128``, ``25%``, ``2.43T``, ``59% FLOPs``; ``all`` of an empty one."""
    shown = {"keep_tokens": "{:g}", "keep_ratio": "{:.3g}%", "tflops": "{:g}T", "flops_ratio": "{:.3g}% FLOPs"}
    for key, value in values.items():
        return shown[key].format(100 * value if key.endswith("_ratio") else value)
    return "all"
