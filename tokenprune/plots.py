"""The plot of accuracy against cost, one line a pruner."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, PercentFormatter

from tokenprune.record import RunRecord

# Okabe and Ito's palette: told apart with any colour vision; the markers do so in black and white too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLES = ("-", "--", ":")  # for a second and third round of colours
FITS_INSIDE = 6  # lines whose legend finds room between the axes
SHORT = 40  # characters of a label
LAST_NUMBER = re.compile(r"\d+(?=\D*$)")


def pareto(records: Sequence[RunRecord], path: Path) -> None:
    """Draw accuracy over the LLM's prefill FLOPs, with standard errors.

    A pruner at several budgets is one line, and so are pruners of one record each that differ in the last number of
    their labels, as policies for several budgets do.

    Args:
        records: finished ones of a run.
        path: PNG file to write.
    """
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    lines = _lines(records)
    unpruned = lines.pop("none", [])
    for record in unpruned:
        axes.axhline(record.metrics["accuracy"], color="0.6", linewidth=1, linestyle="--", zorder=0)
        _line(axes, [record], "no pruning", "0.35", "*")
    for number, (label, points) in enumerate(lines.items()):
        again, index = divmod(number, len(COLOURS))
        _line(axes, points, label, COLOURS[index], MARKERS[index], STYLES[again % len(STYLES)])
    axes.set_xlabel("LLM prefill FLOPs per question")
    axes.set_ylabel("accuracy")
    axes.set_xscale("log")  # budgets shrink by factors
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if len(lines) <= FITS_INSIDE and max(map(len, lines), default=0) <= SHORT:
        axes.legend(frameon=False, fontsize=9, loc="best")
    else:
        figure.set_size_inches(10, 4.6)
        figure.legend(frameon=False, fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=160)


def _lines(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Records by the label of their line."""
    labels = Counter(record.label for record in records)
    shared = Counter(LAST_NUMBER.sub("…", label) for label, number in labels.items() if number == 1)
    lines: dict[str, list[RunRecord]] = {}
    for record in records:
        family = LAST_NUMBER.sub("…", record.label)
        alone = labels[record.label] == 1 and shared[family] > 1
        lines.setdefault(family if alone else record.label, []).append(record)
    return lines


def _line(axes: Axes, points: Sequence[RunRecord], label: str, colour: str, marker: str, style: str = "-") -> None:
    metrics = sorted((point.metrics for point in points), key=lambda m: m["llm_prefill_flops"])
    axes.errorbar(
        [m["llm_prefill_flops"] for m in metrics],
        [m["accuracy"] for m in metrics],
        yerr=[m["accuracy_standard_error"] for m in metrics],
        label=label,
        color=colour,
        marker=marker,
        linestyle=style,
        markersize=11 if marker == "*" else 6,
        markeredgecolor="white",  # so that one marker on another is still seen
        linewidth=1.5,
        capsize=2,
        elinewidth=0.8,
    )
