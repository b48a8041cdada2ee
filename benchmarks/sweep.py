"""What a sweep costs, against as many separate runs: five pruners at four budgets on the embedded model.

    python benchmarks/sweep.py

CPU time of whole processes, which start, load and write their results. Separate runs are those of ``tokenprune run``,
which also answer without pruning and with the random baseline, as each needs both to be read; ``alone`` is what is left
of them without these two cells. The bound is what the sweep's cells took, without the start and without reports.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import facts
from rich.console import Console
from rich.table import Table

PRUNERS = ("uniform", "divprune", "cdpruner", "fastv", "dart")
OPTIONS = {"fastv": {"layer": 1}, "dart": {"layer": 1}}
BUDGETS = (72, 48, 36, 28)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, nargs="+", default=[240, 1002])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sweep.json"))
    arguments = parser.parse_args()
    table = Table("questions", "20 runs, CPU s", "20 cells alone", "sweep", "bound", "sweep / runs", "sweep / alone")
    results = []
    for number in arguments.questions:
        with tempfile.TemporaryDirectory() as folder:
            found = compare(Path(folder), number, arguments.threads)
        results.append({"questions": number, **found})
        runs, alone, sweep, bound = (found[name] for name in ("runs", "alone", "sweep", "bound"))
        values = (f"{value:.0f}" for value in (runs, alone, sweep, bound))
        table.add_row(str(number), *values, f"{sweep / runs:.3f}", f"{sweep / alone:.3f}")
    Console().print(table)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps({**facts(arguments.threads), "results": results}, indent=1) + "\n")


def compare(folder: Path, questions: int, threads: int) -> dict[str, float]:
    """CPU seconds of the sweep, of separate runs, and of parts of both."""
    settings = {
        "model": "embedded",
        "task": {"name": "scenes", "split": "test", "num_samples": questions},
        "batch_size": 64,
        "timing_repeats": 0,
        "output": str(folder),
    }
    pruners = [{"name": name, **OPTIONS.get(name, {})} for name in PRUNERS]
    grid = {"pruner": pruners, "budget.average_tokens": list(BUDGETS)}
    sweep, bound = timed(folder, "sweep", {**settings, "name": "sweep", "grid": grid}, threads), 0.0
    bound = sum(record["seconds"] for record in records(folder / "sweep"))
    runs = alone = 0.0
    for number, (pruner, budget) in enumerate(itertools.product(pruners, BUDGETS)):
        output = folder / str(number)
        run = {**settings, "pruner": pruner, "budget": {"average_tokens": budget}, "output": str(output)}
        spent = timed(folder, "run", run, threads)
        runs += spent
        others = (r["seconds"] for r in records(next(output.iterdir())) if r["pruner"]["name"] != pruner["name"])
        alone += spent - sum(others)
    return {"runs": runs, "alone": alone, "sweep": sweep, "bound": bound}


def timed(folder: Path, command: str, settings: dict[str, object], threads: int) -> float:
    """CPU seconds of one process of tokenprune."""
    path = folder / "config.yaml"
    path.write_text(json.dumps(settings))  # YAML as well
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-m", "tokenprune", command, path], check=True, capture_output=True, env=environment
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def records(folder: Path) -> list[dict[str, object]]:
    """Of a results folder."""
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    main()
