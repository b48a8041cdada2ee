"""A policy as a table for the terminal and as a picture: which layer does what, and the curves that led there."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Column, Table

from tokenprune.core.errors import DataError
from tokenprune.pruners.dop.curves import Curve
from tokenprune.pruners.dop.depths import Depths
from tokenprune.pruners.dop.policy import Policy
from tokenprune.pruners.dop.solve import Candidate

RUNS, SKIPPED = "#0072B2", "#E6E6E6"  # dark and light: told apart in grey too
SPAN = 1e4  # largest over smallest divergence that the scale tells apart
UNITS = {"flops": "FLOPs", "average_tokens": "average\ntokens", "milliseconds": "ms"}
OPERATIONS = ("K/V", "Q/O", "MLP")
# Okabe and Ito's palette: told apart with any colour vision; markers and lines do so in black and white too.
LINES = {
    "attention": ("attention", "#0072B2", "o", "-"),
    "query": ("queries", "#009E73", "^", "--"),
    "mlp": ("MLP", "#D55E00", "s", "-."),
    "tokens": ("visual tokens", "#000000", "D", "-"),
}


def policy_table(policy: Policy) -> Table:
    """A table of the chosen policy and its candidates, the best prediction first; it fits into 80 columns.

    Args:
        policy: as loaded.
    """
    objective, budget = policy.objective, policy.budget
    headers = ("K/V\nlayers", "Q/O\nlayers", "MLP\nlayers", "visual\ntokens", "predicted\nKL", "measured\nKL")
    table = Table(
        "",
        *(Column(header, justify="right") for header in (*headers, UNITS[budget.kind])),
        title=escape(f"{policy.origin.model}, {policy.base['name']}, at most {budget.value:.4g} {budget.kind}"),
        caption=escape(
            f"of {policy.curves.layers} layers and {policy.curves.visual_tokens} visual tokens; KL in nats, "
            f"{objective.direction}, {objective.positions}, {objective.samples} samples; attention: "
            f"{objective.attention}"
        ),
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    others = [candidate for candidate in policy.candidates if candidate.depths != policy.depths]
    for candidate in (policy.chosen, *others):
        table.add_row(*_row(policy, candidate), style="bold" if candidate is policy.chosen else None)
    return table


def _row(policy: Policy, candidate: Candidate) -> list[str]:
    depths = candidate.depths
    numbers = (depths.sources(policy.curves.layers), depths.receivers, depths.mlp, depths.keep)
    measured = "-" if candidate.measured is None else f"{candidate.measured:.3g}"
    mark = "chosen" if candidate is policy.chosen else ""
    return [mark, *map(str, numbers), f"{candidate.predicted:.3g}", measured, f"{candidate.cost:.4g}"]


def draw_policy(policy: Policy, layers: int, path: Path) -> None:
    """Draw layers over operations, and below it the measured curves with their interpolation.

    Args:
        policy: as loaded.
        layers: of the LLM that it is for.
        path: PNG file to write.

    Raises:
        ConfigError: if the LLM has fewer layers than the policy speaks of.
        DataError: if the file cannot be written.
    """
    policy.depths.check(layers, policy.curves.visual_tokens)
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    panels: dict[str, Axes] = figure.subplot_mosaic([["plan", "plan"], ["depth", "tokens"]], height_ratios=[1, 1.7])
    panels["tokens"].sharey(panels["depth"])
    total = policy.curves.visual_tokens
    panels["plan"].set_title(f"visual tokens that take part, of {total}; text always does", fontsize=10)
    _plan(panels["plan"], policy.depths, layers)
    chosen = {
        "attention": policy.depths.attention,
        "query": policy.depths.receivers,
        "mlp": policy.depths.mlp,
        "tokens": policy.depths.keep,
    }
    for name, curve in policy.curves.to_mapping().items():
        _curve(panels["tokens" if name == "tokens" else "depth"], name, curve, chosen[name])
    _scales(panels["depth"], panels["tokens"], policy)
    try:
        figure.savefig(path, dpi=160, format="png")
    except OSError as error:
        raise DataError(f"picture {str(path)!r} cannot be written: {error.strerror}") from None


def _plan(axes: Axes, depths: Depths, layers: int) -> None:
    ends = (depths.sources(layers), depths.receivers, depths.mlp)
    runs = np.arange(layers) < np.array(ends)[:, None]
    axes.pcolormesh(runs, cmap=ListedColormap([SKIPPED, RUNS]), vmin=0, vmax=1, edgecolors="white", linewidth=0.8)
    for row, end in enumerate(ends):
        for first, last, tokens, colour, ground in (
            (0, end, depths.keep, "white", RUNS),
            (end, layers, 0, "black", SKIPPED),
        ):
            if last > first:
                box = {"facecolor": ground, "edgecolor": "none", "pad": 1}
                axes.text((first + last) / 2, row + 0.5, str(tokens), color=colour, ha="center", va="center", bbox=box)
    axes.invert_yaxis()
    axes.set_yticks(np.arange(3) + 0.5, OPERATIONS)
    step = 1 if layers <= 16 else 2 if layers <= 36 else 4
    axes.set_xticks(np.arange(0, layers, step) + 0.5, [str(layer) for layer in range(0, layers, step)])
    axes.set_xlabel("decoder layer")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _curve(axes: Axes, name: str, curve: Curve, chosen: int) -> None:
    label, colour, marker, style = LINES[name]
    known = np.flatnonzero(np.isfinite(curve.values))
    axes.plot(known, curve.values[known], color=colour, linestyle=style, linewidth=1.5)
    measured = {**curve.points, curve.full: 0.0}
    axes.plot(list(measured), list(measured.values()), marker, color=colour, label=label, markersize=5, clip_on=False)
    at = min(chosen, curve.full)  # dead work may be left in what somebody wrote by hand
    if np.isfinite(curve.values[at]):
        axes.plot(at, curve.values[at], "o", color=colour, fillstyle="none", markersize=12, clip_on=False)


def _scales(depth: Axes, tokens: Axes, policy: Policy) -> None:
    positive = [v for c in policy.curves.to_mapping().values() for v in c.points.values() if v > 0]
    if positive:  # divergences span decades, and the ends are 0: linear below the lowest decade shown
        lowest = math.floor(math.log10(max(min(positive), max(positive) / SPAN)))
        depth.set_yscale("symlog", linthresh=10.0**lowest, linscale=0.5)
    depth.set_ylim(bottom=0)
    depth.set_ylabel("KL from the unpruned model, nats")
    depth.set_xlabel("depth of an operation, layers")
    tokens.set_xlabel("visual tokens that enter the LLM")
    tokens.tick_params(labelleft=False)
    for axes in (depth, tokens):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    tokens.plot([], [], "o", color="0.3", fillstyle="none", markersize=12, label="chosen")
    tokens.legend(frameon=False, fontsize=9)
