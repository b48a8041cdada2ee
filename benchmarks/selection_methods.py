"""What methods before the LLM take to choose visual tokens: ours and the official code's loop, in one process.

    python benchmarks/selection_methods.py            most points, a quarter of an hour and 4 GB of memory
    python benchmarks/selection_methods.py --quick    one point of each method
    python benchmarks/selection_methods.py --methods scope,mmtok    the other rows of the file stay
    python benchmarks/selection_methods.py --rounding    no times: VisPruner's tokens in float32 and in float64

``literal``: the loops of ``literal_methods.py``. ``same set``: the share of their tokens that ours keeps, too. Both get
the same tensors. Calls take turns, until each took 0.4 seconds or ran ``--repeats`` times; times in the table are the
least, which other processes disturb least; medians are in the file. ``prunesid_within`` is PruneSID given the groups,
ours and the literal loop the same; ``prunesid`` with them, where the official code's random components keep other
tokens than the exact ones.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import literal_methods
import torch
from literal_methods import Inputs
from machine import facts
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from tokenprune.core.signals import TowerAttention, TowerKeys
from tokenprune.core.tokens import VisualTokens
from tokenprune.costs.latency import time_call
from tokenprune.pruners.base import create_pruner
from tokenprune.pruners.prunesid.groups import principal_groups
from tokenprune.pruners.prunesid.within import best_of_groups

GRIDS, PICKS, BATCHES = {576: (24, 24), 2880: (48, 60)}, (64, 128, 320, 640), (1, 16)
WIDTH, HEADS, CLIP, WORDS = 1024, 16, 768, 12
OPTIONS = {"hiprune": {"neighbours": "sequence"}}  # as the official code counts them
METHODS = (
    *("fastervlm", "vispruner", "visionzip", "hiprune", "trim", "holov", "scope", "prunesid", "prunesid_within"),
    *("mmtok", "vscan", "prumerge"),
)
LONG = 0.4  # seconds of calls after which a point is measured
LARGEST = {"scope": (64,), "mmtok": (64,), "vispruner": (640,)}  # T at 16 rows of 2880, where others take minutes
Call = Callable[[], object]


def example(n: int, batch: int) -> Inputs:
    """Features in clusters with a common mean, as visual features have them, and attention with a few high values."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def attention() -> Tensor:
        return (2 * normal(batch, HEADS, n)).softmax(2)

    centers = normal(60, WIDTH)
    features = centers[torch.randint(60, (batch, n), generator=generator)] + 0.7 * normal(batch, n, WIDTH) + 0.5
    query, keys = normal(batch, WIDTH), torch.cat([normal(batch, 1, WIDTH), features], 1)
    heads = (y.unflatten(-1, (HEADS, -1)).movedim(-2, 1) for y in (query[:, None], keys))
    paid = torch.einsum("bhqd,bhnd->bhn", *heads) / (WIDTH // HEADS) ** 0.5
    maps = paid.softmax(2)[:, :, 1:].contiguous(), attention(), attention(), attention()
    embeds = normal(batch, n, CLIP), normal(batch, 1, CLIP) / CLIP**0.5, normal(batch, WORDS, WIDTH)
    return Inputs(features, keys, query, *maps, *embeds, GRIDS[n])


def tokens_of(inputs: Inputs) -> VisualTokens:
    """The same as the pruners see them."""
    signals = {
        **{str(TowerAttention("cls", layer)): inputs.attention for layer in (None, -1)},
        **{str(TowerAttention("cls", layer)): inputs.early for layer in (5 / 24, 1 / 3)},
        str(TowerAttention("patches")): inputs.received,
        str(TowerAttention("patches", 1 / 3)): inputs.early_received,
        **{str(TowerKeys(layer)): inputs.keys[:, 1:].contiguous() for layer in (None, -1)},
        **{"vision_hidden": inputs.features, "prompt_embeds": inputs.words},
        **{"clip_image_embeds": inputs.image, "clip_text_embeds": inputs.text},
    }
    return VisualTokens(inputs.features, signals, grid=inputs.grid)


def calls(method: str, inputs: Inputs, k: int) -> dict[str, Call]:
    """Ours, which returns a selection or kept tokens, and the literal loop."""
    literal = getattr(literal_methods, method)
    if method == "prunesid_within":
        group, score = principal_groups(inputs.features, (k + 1) // 4), inputs.attention.mean(1)
        return {
            "ours": lambda: best_of_groups(inputs.features, score, group, k + 1),
            "literal": lambda: literal(inputs, k, group),
        }
    pruner, tokens = create_pruner(method, **OPTIONS.get(method, {})), tokens_of(inputs)

    def ours() -> Tensor:
        chosen = pruner.select(tokens, k)
        if method == "vscan":  # folding waits for the features that are folded; the literal loop has done it
            chosen.apply(tokens.features)
        return chosen.keep

    return {"ours": ours, "literal": lambda: literal(inputs, k)}


def in_turns(works: dict[str, Call], repeats: int) -> tuple[dict[str, list[float]], dict[str, object]]:
    """Seconds of each call, and its last result. The first turn only warms up, unless it takes long."""
    times: dict[str, list[float]] = {name: [] for name in works}
    found: dict[str, object] = {}
    for turn in range(repeats + 1):
        for name, work in works.items():
            if sum(times[name]) < LONG or turn == 0:
                found[name], seconds = time_call(work, torch.device("cpu"))
                times[name].append(seconds)
    return {name: spent[1:] if len(spent) > 1 else spent for name, spent in times.items()}, found


def shared(kept: Tensor, others: Tensor) -> float:
    """The share of kept tokens (B, K), -1 being none, that others contain, too."""
    pairs = [
        ({i for i in row if i >= 0}, set(other)) for row, other in zip(kept.tolist(), others.tolist(), strict=True)
    ]
    return sum(len(row & other) for row, other in pairs) / sum(len(row) for row, _ in pairs)


def rounding() -> None:
    """Print which share of the tokens of VisPruner's literal loop in float64 others keep."""
    inputs = example(576, 16)
    wide = replace(inputs, **{k: v.double() for k, v in vars(inputs).items() if isinstance(v, Tensor)})
    for k in (64, 128, 320):
        exact = literal_methods.vispruner(wide, k)
        found = {f"{name} float32": work() for name, work in calls("vispruner", inputs, k).items()}
        found["ours float64"] = calls("vispruner", wide, k)["ours"]()
        print(f"T = {k}:", ", ".join(f"{name} {shared(exact, kept):.3f}" for name, kept in found.items()))


def point(method: str, inputs: Inputs, k: int, repeats: int) -> dict[str, object]:
    """Times of one point, and how much of the set is the literal loop's."""
    times, found = in_turns(calls(method, inputs, k), repeats)
    kept = found["literal"][0] if isinstance(found["literal"], tuple) else found["literal"]
    same = shared(kept, found["ours"])
    sizes = {"method": method, "N": inputs.features.shape[1], "T": k, "batch": len(inputs.features)}
    spent = {f"{name}_ms": 1e3 * median(each) for name, each in times.items()}
    least = {f"{name}_least_ms": 1e3 * min(each) for name, each in times.items()}
    return {**sizes, "same_set": same, **spent, **least, "ratio": least["literal_least_ms"] / least["ours_least_ms"]}


def show(rows: list[dict[str, object]]) -> None:
    """Print a table of points."""
    table = Table("method", "N", "T", "batch", "ours ms", "literal ms", "literal / ours", "same set")
    for row in rows:
        numbers = (
            f"{row['ours_least_ms']:.2f}",
            f"{row['literal_least_ms']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['same_set']:.4f}",
        )
        table.add_row(*(str(row[key]) for key in ("method", "N", "T", "batch")), *numbers)
    Console(width=120).print(table)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only N = 576, T = 128, one row")
    parser.add_argument("--rounding", action="store_true", help="see above")
    parser.add_argument("--methods", default=",".join(METHODS), help="separated by commas")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/selection_methods.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.rounding:
        rounding()
        return
    wanted, machine = arguments.methods.split(","), facts(arguments.threads)
    sizes = [(576, 1)] if arguments.quick else [(n, batch) for n in GRIDS for batch in BATCHES]
    picks = (128,) if arguments.quick else PICKS
    old = json.loads(arguments.out.read_text())["results"] if arguments.out.exists() and not arguments.quick else []
    others, rows = [row for row in old if row["method"] not in wanted], []
    for n, batch in sizes:
        inputs = example(n, batch)
        points = [
            (method, k)
            for method in sorted(wanted, key=list(LARGEST).__contains__)  # what takes longest comes last
            for k in (LARGEST.get(method, picks) if n * batch == 2880 * 16 else picks)
            if k < n
        ]
        for method, k in track(points, f"{n} tokens, batch {batch}"):
            rows.append(point(method, inputs, k, arguments.repeats) | {"commit": machine["commit"]})
            results = sorted([*others, *rows], key=lambda row: METHODS.index(row["method"]))
            if not arguments.quick:  # after each point, so that what ran is kept
                arguments.out.write_text(json.dumps({**machine, "results": results}, indent=1) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
