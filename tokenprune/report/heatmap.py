"""Heat maps of a grid: accuracy over the options of a pruner that vary, one panel a budget."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokenprune.report.numbers import budget
from tokenprune.report.rows import Row, natural
from tokenprune.sweeps.overlay import PLAIN

Cells = dict[tuple[str, str], float]  # accuracy by what stands down and across


@dataclass(frozen=True)
class Grid:
    """What varies in a pruner.

    Attributes:
        pruner: its name.
        across: the option of the columns.
        down: the other options, which the rows show.
        panels: cells by budget.
    """

    pruner: str
    across: str
    down: str
    panels: Mapping[str, Cells]


def grids(rows: Sequence[Row]) -> list[Grid]:
    """The pruners at least two of whose options vary, besides the seed.

    Numbers stand across, of several options that whose values are most; the others stand down together, so that nothing
    is averaged over.

    Args:
        rows: finished ones, on one model and task.
    """
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        if row.any.budget:
            by_name.setdefault(_names(row.any.pruner), []).append(row)
    return [grid for name, group in by_name.items() if (grid := _grid(name, group))]


def _grid(name: str, rows: Sequence[Row]) -> Grid | None:
    flat = [_flat(row.any.pruner) for row in rows]
    keys = sorted({key for options in flat for key in options})
    values = {key: list({json.dumps(options.get(key)): options.get(key) for options in flat}.values()) for key in keys}
    varied = [key for key in keys if len(values[key]) > 1]
    if len(varied) < 2:
        return None
    across = max(varied, key=lambda key: (sum(_number(value) for value in values[key]), -varied.index(key)))
    down = [key for key in varied if key != across]
    panels: dict[str, Cells] = {}
    for row, options in zip(rows, flat, strict=True):
        at = (", ".join(_text(options.get(key)) for key in down), _text(options.get(across)))
        panels.setdefault(budget(row.any.budget), {})[at] = row.number("accuracy")
    return Grid(name, across, ", ".join(down), panels)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> str:
    return "default" if value is None else str(value)


def _names(pruner: Mapping[str, Any]) -> str:
    members = [member["name"] for member in pruner.get("pruners", ()) if "name" in member]
    return "+".join(members) or str(pruner["name"])


def _flat(value: Any, before: str = "") -> dict[str, Any]:
    """Options by dotted keys, without seeds."""
    if isinstance(value, Mapping):
        pairs = [(str(key), item) for key, item in value.items() if key != "seed"]
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        pairs = [(str(at), item) for at, item in enumerate(value)]
    else:
        return {before: value}
    return {k: v for key, item in pairs for k, v in _flat(item, f"{before}.{key}".lstrip(".")).items()}


def draw(grid: Grid, path: Path) -> None:
    """Draw all budgets of a grid; each panel has colours of its own, and the numbers stand in it.

    Args:
        grid: as found.
        path: PNG file to write.
    """
    down = sorted({at[0] for cells in grid.panels.values() for at in cells}, key=natural)
    across = sorted({at[1] for cells in grid.panels.values() for at in cells}, key=natural)
    columns = min(len(grid.panels), max(1, 12 // len(across)))
    lines = math.ceil(len(grid.panels) / columns)
    label = 0.085 * max(map(len, down))
    size = (columns * (0.72 * len(across) + 0.6) + label + 0.8, lines * (0.36 * len(down) + 1.0) + 0.5)
    figure = Figure(figsize=(max(5.0, size[0]), size[1]), layout="constrained")
    figure.suptitle(f"{grid.pruner}: accuracy in %", fontsize=11, fontweight="bold")
    panels = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axes, (name, cells) in zip(panels.flat, grid.panels.items(), strict=False):
        _panel(axes, name, cells, down, across)
    for axes in panels.flat[len(grid.panels) :]:
        axes.set_axis_off()
    figure.supxlabel(grid.across, fontsize=10)
    figure.supylabel(grid.down, fontsize=10)
    figure.savefig(path, dpi=130, metadata=PLAIN)


def _panel(axes: Axes, name: str, cells: Cells, down: Sequence[str], across: Sequence[str]) -> None:
    values = np.array([[cells.get((y, x), np.nan) for x in across] for y in down])
    low, high = np.nanmin(values), np.nanmax(values)
    # Light to dark in every channel, so that the order stays in grey and with any colour vision.
    image = axes.imshow(values, cmap="cividis", aspect="auto", vmin=low, vmax=max(high, low + 1e-6))
    axes.set_title(name, fontsize=10)
    axes.set_xticks(range(len(across)), across, fontsize=9)
    axes.set_yticks(range(len(down)), down, fontsize=9)
    axes.tick_params(length=0)
    axes.set_facecolor("white")
    for y, x in np.ndindex(values.shape):
        value = values[y, x]
        if np.isnan(value):
            axes.text(x, y, "–", ha="center", va="center", fontsize=9, color="0.5")
            continue
        red, green, blue, _ = image.cmap(image.norm(value))
        ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
        best = "bold" if value == high else "normal"
        axes.text(x, y, f"{100 * value:.1f}", ha="center", va="center", fontsize=9, color=ink, fontweight=best)
