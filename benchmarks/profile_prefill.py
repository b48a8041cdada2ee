"""Where the time of a pruned prefill goes that the bound of ``in_llm.py`` does not have: PyTorch's operations by name.

    python benchmarks/profile_prefill.py                     SparseVLM, 64 tokens
    python benchmarks/profile_prefill.py --method pyramiddrop --out pyramiddrop.json

Both run under PyTorch's profiler, in turns, on the wall clock. Times are of operations alone, without those that they
call; ``python`` is what is spent outside of them, and what the profiler itself takes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from in_llm import Run, build, methods
from machine import facts
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile


def operations(work: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of each operation, and of ``python``."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        start = time.perf_counter()
        work()
        whole = 1e3 * (time.perf_counter() - start)
    spent = {event.key: event.self_cpu_time_total / 1e3 for event in seen.key_averages()}
    return {**spent, "python": whole - sum(spent.values())}


@torch.inference_mode()
def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="sparsevlm 64", help="a method of in_llm.py")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--rows", type=int, default=14, help="operations to print, those with the largest differences")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/profile_prefill.json"))
    arguments = parser.parse_args()
    known = methods(arguments.layers)
    if arguments.method not in known:
        parser.error(f"--method {arguments.method!r} is not one of {', '.join(known)}")
    torch.set_num_threads(1)
    run = Run(build(arguments.width, arguments.layers), *known[arguments.method])
    turns = [(operations(run.ours), operations(run.bound)) for _ in range(arguments.turns + 1)][1:]
    names = sorted({name for pair in turns for spent in pair for name in spent})
    found = {name: [median(pair[i].get(name, 0.0) for pair in turns) for i in range(2)] for name in names}
    totals = [sum(spent[i] for spent in found.values()) for i in range(2)]
    table = Table("operation", "ours ms", "bound ms", "difference, of the bound", title=arguments.method)
    order = sorted(found, key=lambda name: found[name][1] - found[name][0])
    for name in order[: arguments.rows]:
        ours, bound = found[name]
        table.add_row(name, f"{ours:.2f}", f"{bound:.2f}", f"{(ours - bound) / totals[1]:+.2%}")
    table.add_row("all", *(f"{total:.2f}" for total in totals), f"{totals[0] / totals[1] - 1:+.2%}")
    Console().print(table)
    result = {**facts(1), "method": arguments.method, "turns": arguments.turns, "ms": found}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
