"""Which methods keep the same visual tokens: the mean share of what one keeps that another keeps, too.

python experiments/all_methods/overlap.py runs/all_methods experiments/all_methods/overlap.png
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from itertools import combinations_with_replacement
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.figure import Figure

Kept = dict[str, dict[str, set[int]]]  # visual tokens at the end, by method and question


def kept_tokens(folder: Path, budget: int) -> Kept:
    """What methods before the LLM keep under a budget of so many visual tokens; random's first seed stands for all."""
    labels: dict[str, str] = {}
    for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        asked = record["budget"] == {"average_tokens": budget}
        if record["status"] == "ok" and asked and record["pruner"].get("seed", 0) == 0:
            labels[record["cell"]] = record["label"].replace(" seed=0", "")
    kept: Kept = defaultdict(dict)
    for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        told = json.loads(line)
        stages = told["stages"]
        if told["cell"] in labels and stages and not any(each["stage"].startswith("layer") for each in stages):
            kept[labels[told["cell"]]][told["sample"]] = set(stages[-1]["kept"])
    return dict(kept)


def overlap(one: dict[str, set[int]], other: dict[str, set[int]]) -> float:
    """Share of the smaller set that is in the other, mean over the questions."""
    return fmean(len(one[name] & other[name]) / min(len(one[name]), len(other[name])) for name in one)


def draw(table: np.ndarray, names: list[str], budget: int, path: Path) -> None:
    """Draw the shares as a heat map."""
    figure = Figure(figsize=(11, 10), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(table, cmap="viridis", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    for (row, column), share in np.ndenumerate(table):
        colour = "black" if share > 0.6 else "white"
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=7)
    axes.set_title(f"Tokens that two methods both keep, of {budget}, in %")
    figure.colorbar(image, shrink=0.8)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print and draw the shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="of the run")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--budget", type=int, default=24, help="visual tokens")
    asked = parser.parse_args()
    kept = kept_tokens(asked.folder, asked.budget)
    names = list(kept)
    table = np.eye(len(names))
    for (row, one), (column, other) in combinations_with_replacement(enumerate(names), 2):
        table[row, column] = table[column, row] = overlap(kept[one], kept[other])
    width = max(map(len, names))
    for name, row in zip(names, table, strict=True):
        print(name.ljust(width), *(f"{100 * share:4.0f}" for share in row))
    draw(table, names, asked.budget, asked.picture)


if __name__ == "__main__":
    main()
