"""What choosing visual tokens costs: ours, the official code's loop, and a lower bound, in one process.

    python benchmarks/selection.py            all points, several minutes and 2 GB of memory
    python benchmarks/selection.py --quick    one point of each method
    python benchmarks/selection.py --device cuda    ``steps``, one pick at a time, is a CUDA graph there
    python benchmarks/selection.py --video    64 frames of 576 tokens, ours alone: the literal loops need 5 GB and more

``literal``: the greedy loops of CDPruner and DivPrune as the official code runs them: the whole N x N matrix first,
then one pick at a time. ``bound``: bare products that a method needs which knows all gains after each pick. For
CDPruner these are the kernel rows of the T picks (T x N x D) and their orthogonalisation (half of T x T x N); for
DivPrune the distances of the T picks to all others (T x N x D), without the search for its first pick. ``dpp`` is
CDPruner with relevance between 0.99 and 1. Memory is the peak of what a selection allocates, on top of its input.
``same set``: the share of our picks that the literal loop makes, too; where it is not 1, both are compared with the
literal loop in float64 (``ours_of_float64``, ``literal_of_float64`` in the file).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from machine import facts
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from tokenprune.costs.latency import time_call
from tokenprune.costs.memory import peak_bytes
from tokenprune.functional.cluster import dpc_knn
from tokenprune.functional.dpp import greedy_map
from tokenprune.functional.farthest import max_min
from tokenprune.functional.greedy import Loop, lazy_greedy, stepwise_greedy
from tokenprune.functional.kernels import KernelMatrix
from tokenprune.sweeps.provenance import device_name

SIZES, PICKS, WIDTHS = (576, 2880, 10_000), (64, 320, 640), (1024, 4096)
COLUMNS = ("method", "N", "T", "D", "ours ms", "literal ms", "bound ms", "literal / ours", "ours / bound")


def cdpruner_ours(features: Tensor, relevance: Tensor, k: int, loop: Loop = lazy_greedy) -> Tensor:
    """(B, k) picks; features (B, N, D), relevance (B, N)."""
    return greedy_map(KernelMatrix.of(features, "cosine", relevance), k, None, loop)


def cdpruner_literal(features: Tensor, relevance: Tensor, k: int) -> Tensor:
    """(B, k) picks; features (B, N, D), relevance (B, N)."""
    unit = features / features.norm(dim=-1, keepdim=True)
    kernel = relevance[:, :, None] * (unit @ unit.mT) * relevance[:, None]
    batch, n, _ = kernel.shape
    rows, gain = kernel.new_zeros(k, batch, n), kernel.diagonal(dim1=1, dim2=2).clone()
    picks = torch.empty(k, batch, dtype=torch.long, device=kernel.device)
    lines = torch.arange(batch, device=kernel.device)
    for t in range(k):
        j = gain.argmax(-1)
        picks[t] = j
        seen = torch.einsum("tb,tbn->bn", rows[:t, lines, j], rows[:t])
        rows[t] = (kernel[lines, j] - seen) / gain[lines, j].sqrt()[:, None]
        gain -= rows[t].square()
        gain[lines, j] = -torch.inf
    return picks.T


def divprune_ours(features: Tensor, relevance: Tensor, k: int, loop: Loop = lazy_greedy) -> Tensor:
    """(B, k) picks; features (B, N, D)."""
    return max_min(features, k, None, loop)


def divprune_literal(features: Tensor, relevance: Tensor, k: int) -> Tensor:
    """(1, k) picks of one row."""
    unit = features[0] / features[0].norm(dim=-1, keepdim=True)
    distance = 1 - unit @ unit.T
    picks = torch.empty(k, dtype=torch.long, device=features.device)
    picks[0] = distance.topk(2, dim=0, largest=False).values[1].argmax()
    for t in range(1, k):
        picks[t] = distance.index_select(0, picks[:t]).min(0).values.argmax()
    return picks[None]


METHODS = {
    "cdpruner": (cdpruner_ours, cdpruner_literal),
    "dpp": (cdpruner_ours, cdpruner_literal),  # the same with next to no relevance: what looking ahead finds hardest
    "divprune": (divprune_ours, divprune_literal),
}


def bound(n: int, d: int, k: int, device: torch.device, *, orthogonalise: bool) -> Callable[[], object]:
    """The bare matrix products of these sizes."""
    sizes = (k, d), (d, n), (k, k // 2), (k // 2, n)
    picks, tokens, factor, past = (torch.randn(size, device=device) for size in sizes)
    return lambda: (picks @ tokens, factor @ past if orthogonalise else None)


def median_ms(works: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median of interleaved runs, after one to warm up, ms."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            _, seconds = time_call(work, device)
            if repeat:
                times[name].append(1e3 * seconds)
    return {name: sorted(spent)[len(spent) // 2] for name, spent in times.items()}


def peak_mb(work: Callable[[], object], device: torch.device) -> float:
    """Most that a call allocates at one time, 10^6 bytes."""
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    return (peak_bytes(work, device) - before) / 1e6


def example(n: int, d: int) -> tuple[Tensor, Tensor]:
    """Features (1, n, d) in clusters with a common mean, as visual features have them, and relevance (1, n)."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(60, d, generator=generator)
    members = centers[torch.randint(60, (n,), generator=generator)]
    features = members + 0.7 * torch.randn(n, d, generator=generator) + 0.5
    return features[None], torch.rand(1, n, generator=generator) + 1e-6


def shared(picks: Tensor, others: Tensor) -> float:
    """The share of picks (1, k) that others contain, too."""
    return len(set(picks[0].tolist()) & set(others[0].tolist())) / picks.shape[1]


def point(method: str, n: int, k: int, d: int, repeats: int, device: torch.device) -> dict[str, object]:
    """Times and memory of one point, and how much of the set is the literal loop's."""
    features, relevance = (x.to(device) for x in example(n, d))
    if method == "dpp":
        relevance = 0.99 + 0.01 * relevance
    ours, literal = (lambda f=f: f(features, relevance, k) for f in METHODS[method])
    works = {"ours": ours, "literal": literal, "bound": bound(n, d, k, device, orthogonalise=method != "divprune")}
    if device.type == "cuda" or n < 10_000:
        works["steps"] = lambda: METHODS[method][0](features, relevance, k, stepwise_greedy)
    mine, theirs = ours().cpu(), literal().cpu()
    shares = {"same_set": shared(mine, theirs)}
    if shares["same_set"] < 1:
        exact = METHODS[method][1](features.double(), relevance.double(), k).cpu()
        shares |= {"ours_of_float64": shared(mine, exact), "literal_of_float64": shared(theirs, exact)}
    if "steps" in works:
        shares["steps_same_set"] = shared(mine, METHODS[method][0](features, relevance, k, stepwise_greedy).cpu())
    times = {f"{name}_ms": ms for name, ms in median_ms(works, repeats, device).items()}
    memory = {"ours_mb": peak_mb(ours, device), "literal_mb": peak_mb(literal, device)} if n * k <= 2880 * 640 else {}
    sizes = {"method": method, "N": n, "T": k, "D": d}
    return {**sizes, "same_order": torch.equal(mine, theirs), **shares, **times, **memory}


def video(method: str, n: int, k: int, d: int, device: torch.device) -> dict[str, object]:
    """Seconds and memory of one selection in a long video."""
    features, relevance = (x.to(device) for x in example(n, d))
    works: dict[str, Callable[[], object]] = {
        name: lambda f=f: f(features, relevance, k) for name, (f, _) in METHODS.items()
    }  # type: ignore[misc]
    dropped = features[0, : 3 * (n - k) // 10]  # SparseVLM clusters 30 % of what it drops, into a tenth of that
    works["sparsevlm's clusters"] = lambda: dpc_knn(dropped, len(dropped) // 10)
    memory, seconds = time_call(lambda: peak_mb(works[method], device), device)
    return {"method": method, "N": n, "T": k, "D": d, "seconds": seconds, "mb": memory}


def videos(device: torch.device, threads: int, out: Path) -> None:
    """Run, print and keep them."""
    methods = ["cdpruner", "divprune", "sparsevlm's clusters"]
    rows = [video(method, 64 * 576, 3600, 1024, device) for method in track(methods, "selecting")]
    table = Table("method", "N", "T", "D", "seconds", "MB")
    for row in rows:
        table.add_row(
            *(str(row[key]) for key in ("method", "N", "T", "D")), f"{row['seconds']:.1f}", f"{row['mb']:.0f}"
        )
    Console().print(table)
    out.write_text(json.dumps({**facts(threads), "device": device_name(device), "results": rows}, indent=1) + "\n")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only N = 2880, T = 640, D = 1024")
    parser.add_argument("--video", action="store_true", help="only a long video; see above")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/selection.json, or named by what is run")
    arguments = parser.parse_args()
    names = ["selection", *["video"] * arguments.video, *[arguments.device.type] * (arguments.device.type != "cpu")]
    arguments.out = arguments.out or Path("benchmarks/results", "_".join(names) + ".json")
    torch.set_num_threads(arguments.threads)
    if arguments.video:
        videos(arguments.device, arguments.threads, arguments.out)
        return
    grid = [(n, k, d) for n in SIZES for k in PICKS for d in WIDTHS if k < n]
    points = [(m, *size) for m in METHODS for size in ([(2880, 640, 1024)] if arguments.quick else grid)]
    results = [
        point(*p, arguments.repeats if p[1] < 10_000 else 1, arguments.device) for p in track(points, "selecting")
    ]

    table = Table(*COLUMNS, "same set", "ours MB", "literal MB", "steps ms")
    for row in results:
        ours, literal, floor = (row[f"{name}_ms"] for name in ("ours", "literal", "bound"))
        times = [f"{x:.1f}" for x in (ours, literal, floor, literal / ours, ours / floor)]
        memory = [f"{row[key]:.0f}" if key in row else "" for key in ("ours_mb", "literal_mb", "steps_ms")]
        table.add_row(*(str(row[key]) for key in ("method", "N", "T", "D")), *times, f"{row['same_set']:.3f}", *memory)
    Console(width=140).print(table)
    machine = {**facts(arguments.threads), "device": device_name(arguments.device)}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({**machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
