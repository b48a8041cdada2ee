"""The plots of accuracy against cost, one line a pruner."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from tokenprune.report.rows import Row
from tokenprune.sweeps.overlay import PLAIN

# Okabe and Ito's palette: told apart with any colour vision; the markers do so in black and white too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLES = ("-", "--", ":")  # for a second and third round of colours
FITS_INSIDE = 6  # lines whose legend finds room between the axes
SHORT = 40  # characters of a label
NAMED = 14  # lines that are told apart; of more, the best and random are, and the others are grey
LAST_NUMBER = re.compile(r"\d+(?=\D*$)")


@dataclass(frozen=True)
class Cost:
    """A cost that accuracy is drawn over.

    Attributes:
        metric: of the records.
        label: of the axis.
        numbers: how they look.
    """

    metric: str
    label: str
    numbers: Formatter


def _cost(by: str) -> Cost:
    """The cost of a name, with a formatter of its own, as a formatter belongs to one axis."""
    times = StrMethodFormatter("{x:g}x")
    return {
        "flops": Cost("llm_prefill_flops", "LLM prefill FLOPs per question", EngFormatter(sep="")),
        "tokens": Cost("average_tokens", "visual tokens in a layer of the LLM, mean", StrMethodFormatter("{x:g}")),
        "time": Cost("prefill_time_ratio", "measured time of selection and LLM prefill, over that unpruned", times),
    }[by]


def pareto(rows: Sequence[Row], path: Path, by: str = "flops") -> bool:
    """Draw accuracy over cost, with standard errors over the questions, and which rows no other row beats.

    A pruner at several budgets is one line, and so are pruners of one row each that differ in the last number of
    their labels, as policies for several budgets do.

    Args:
        rows: finished ones, on one model and task.
        path: PNG file to write.
        by: ``flops``, ``tokens`` or ``time``.

    Returns:
        Whether there was anything to draw: time is not always measured.
    """
    cost = _cost(by)
    rows = [row for row in rows if row.values(cost.metric)]
    if not rows:
        return False
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    lines = _lines(rows)
    unpruned = lines.pop("none", [])
    named = _named(lines)
    _front(axes, rows, cost)
    for row in unpruned:
        axes.axhline(row.number("accuracy"), color="0.6", linewidth=1, linestyle="--", zorder=0)
        _line(axes, [row], cost, "no pruning", "0.35", "*")
    for number, label in enumerate(named):
        again, index = divmod(number, len(COLOURS))
        _line(
            axes,
            lines[label],
            cost,
            label,
            COLOURS[index],
            MARKERS[(index + 3 * again) % len(MARKERS)],
            STYLES[again % len(STYLES)],
        )
    others = [label for label in lines if label not in named]
    for label in others:
        name = f"{len(others)} others" if label == others[0] else "_"
        _line(axes, lines[label], cost, name, "0.75", ".", "-", zorder=1)
    _axes(axes, cost)
    if len(lines) <= FITS_INSIDE and max(map(len, lines), default=0) <= SHORT:
        axes.legend(frameon=False, fontsize=9, loc="best")
    else:
        figure.set_size_inches(10, 4.6)
        figure.legend(frameon=False, fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=160, metadata=PLAIN)
    return True


def _lines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by the label of their line."""
    labels = Counter(row.label for row in rows)
    shared = Counter(LAST_NUMBER.sub("…", label) for label, number in labels.items() if number == 1)
    lines: dict[str, list[Row]] = {}
    for row in rows:
        family = LAST_NUMBER.sub("…", row.label)
        alone = labels[row.label] == 1 and shared[family] > 1
        lines.setdefault(family if alone else row.label, []).append(row)
    return lines


def _named(lines: dict[str, list[Row]]) -> list[str]:
    """Labels of the lines that are told apart, in their order."""
    if len(lines) <= NAMED:
        return list(lines)
    best = sorted(lines, key=lambda label: -statistics.fmean(row.number("accuracy") for row in lines[label]))
    kept = {*best[: NAMED - 1], *(["random"] if "random" in lines else best[NAMED - 1 : NAMED])}
    return [label for label in lines if label in kept]


def _front(axes: Axes, rows: Sequence[Row], cost: Cost) -> None:
    """Draw a step at each row that is better than all that cost no more."""
    front: list[tuple[float, float]] = []
    points = [(row.number(cost.metric), row.number("accuracy")) for row in rows]
    for spent, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((spent, accuracy))
    if len(front) > 1:
        axes.step(*zip(*front, strict=True), where="post", color="0.8", linewidth=4, zorder=0, label="Pareto front")


def _axes(axes: Axes, cost: Cost) -> None:
    axes.set_xlabel(cost.label)
    axes.set_ylabel("accuracy")
    axes.set_xscale("log")  # budgets shrink by factors
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter(cost.numbers)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _line(
    axes: Axes, rows: Sequence[Row], cost: Cost, label: str, colour: str, marker: str, style: str = "-", zorder: int = 2
) -> None:
    points = sorted(rows, key=lambda row: row.number(cost.metric))
    axes.errorbar(
        [row.number(cost.metric) for row in points],
        [row.number("accuracy") for row in points],
        yerr=[row.number("accuracy_standard_error") for row in points],
        label=label,
        color=colour,
        marker=marker,
        linestyle=style,
        markersize=11 if marker == "*" else 6,
        markeredgecolor="white",  # so that one marker on another is still seen
        linewidth=1.5,
        capsize=2,
        elinewidth=0.8,
        zorder=zorder,
    )
