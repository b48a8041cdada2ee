"""What choosing visual tokens costs: ours, the official code's loop, and a lower bound, in one process.

    python benchmarks/selection.py            all points, a few minutes
    python benchmarks/selection.py --quick    one point

``literal``: CDPruner's greedy loop and DivPrune's as their formulas stand, in torch, on the whole N x N matrix.
``bound``: the matrix products that no exact method can do without, timed as bare GEMMs. For CDPruner these are the kernel
rows of the T picks (T x N x D) and their orthogonalisation (half of T x T x N); for DivPrune the distances of the T picks
to all others (T x N x D). The search for DivPrune's first pick is not in the bound.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tokenprune.functional.dpp import greedy_map
from tokenprune.functional.farthest import max_min
from tokenprune.functional.kernels import KernelMatrix

SIZES, PICKS, WIDTHS = (576, 2880, 10_000), (64, 320, 640), (1024, 4096)


def cdpruner_literal(features: Tensor, relevance: Tensor, k: int) -> Tensor:
    """(B, k) picks; features (B, N, D), relevance (B, N)."""
    unit = features / features.norm(dim=-1, keepdim=True)
    kernel = relevance[:, :, None] * (unit @ unit.mT) * relevance[:, None]
    batch, n, _ = kernel.shape
    rows, gain = torch.zeros(k, batch, n), kernel.diagonal(dim1=1, dim2=2).clone()
    picks, lines = torch.empty(k, batch, dtype=torch.long), torch.arange(batch)
    for t in range(k):
        j = gain.argmax(-1)
        picks[t] = j
        seen = torch.einsum("tb,tbn->bn", rows[:t, lines, j], rows[:t])
        rows[t] = (kernel[lines, j] - seen) / gain[lines, j].sqrt()[:, None]
        gain -= rows[t].square()
        gain[lines, j] = -torch.inf
    return picks.T


def divprune_literal(features: Tensor, relevance: Tensor, k: int) -> Tensor:
    """(1, k) picks of one row."""
    unit = features[0] / features[0].norm(dim=-1, keepdim=True)
    distance = 1 - unit @ unit.T
    picks = [int(distance.topk(2, dim=0, largest=False).values[1].argmax())]
    for _ in range(k - 1):
        picks.append(int(distance[:, picks].min(1).values.argmax()))
    return torch.tensor(picks)[None]


def gemms(n: int, d: int, k: int, *, orthogonalise: bool) -> Callable[[], None]:
    """Bare matrix products of the sizes that are needed."""
    a, b, c = torch.randn(k, d), torch.randn(d, n), torch.randn(k, k // 2)
    e = torch.randn(k // 2, n)

    def work() -> None:
        a @ b
        if orthogonalise:
            c @ e

    return work


def median_ms(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median of interleaved runs, after one to warm up, ms."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if repeat:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: sorted(spent)[len(spent) // 2] for name, spent in times.items()}


def point(method: str, n: int, k: int, d: int, repeats: int) -> dict[str, object]:
    """Time one point and check that ours and the literal loop pick the same."""
    generator = torch.Generator().manual_seed(0)
    # Clusters with a common mean, as visual features have them; white noise would flatter the look-ahead.
    centers = torch.randn(60, d, generator=generator)
    features = (
        centers[torch.randint(60, (n,), generator=generator)] + 0.7 * torch.randn(n, d, generator=generator) + 0.5
    )
    features, relevance = features[None], torch.rand(1, n, generator=generator) + 1e-6
    ours, literal = {
        "cdpruner": (lambda: greedy_map(KernelMatrix.of(features, "cosine", relevance), k), cdpruner_literal),
        "divprune": (lambda: max_min(features, k), divprune_literal),
    }[method]
    works: dict[str, Callable[[], object]] = {
        "ours": ours,
        "literal": lambda: literal(features, relevance, k),
        "bound": gemms(n, d, k, orthogonalise=method == "cdpruner"),
    }
    same = torch.equal(ours(), literal(features, relevance, k))
    ms = median_ms(works, repeats)
    return {"method": method, "N": n, "T": k, "D": d, "same_picks": same, **{f"{name}_ms": t for name, t in ms.items()}}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only N = 2880, T = 640, D = 1024")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/selection.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    grid = [(n, k, d) for n in SIZES for k in PICKS for d in WIDTHS if k < n]
    table = Table(
        "method", "N", "T", "D", "ours ms", "literal ms", "bound ms", "literal / ours", "ours / bound", "same picks"
    )
    results = []
    for method in ("cdpruner", "divprune"):
        for n, k, d in [(2880, 640, 1024)] if arguments.quick else grid:
            row = point(method, n, k, d, arguments.repeats if n < 10_000 else 1)
            ours, literal, bound = (float(str(row[f"{name}_ms"])) for name in ("ours", "literal", "bound"))
            numbers = [f"{ours:.1f}", f"{literal:.1f}", f"{bound:.1f}", f"{literal / ours:.1f}", f"{ours / bound:.1f}"]
            table.add_row(method, str(n), str(k), str(d), *numbers, str(row["same_picks"]))
            results.append(row)
    Console(width=130).print(table)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    machine = {"machine": platform.machine(), "threads": arguments.threads, "torch": torch.__version__}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(
        json.dumps({**machine, "commit": commit.stdout.strip(), "results": results}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
