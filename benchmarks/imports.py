"""CPU seconds of imports in fresh processes: what tokenprune adds to torch and transformers, and `tokenprune --help`.

python benchmarks/imports.py
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

from machine import facts
from rich.console import Console
from rich.table import Table

BASE = "import torch, transformers; from transformers import LlavaForConditionalGeneration"
PROGRAMS = {
    "torch and transformers": ["-c", BASE],
    "the same, tokenprune and its prune": ["-c", f"{BASE}; import tokenprune; tokenprune.prune"],
    "import tokenprune": ["-c", "import tokenprune"],
    "tokenprune --help": ["-m", "tokenprune", "--help"],
}


def spent(arguments: list[str]) -> float:
    """CPU seconds of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/imports.json"))
    arguments = parser.parse_args()
    turns = [{name: spent(program) for name, program in PROGRAMS.items()} for _ in range(arguments.repeats + 1)][1:]
    medians = {name: median(turn[name] for turn in turns) for name in PROGRAMS}
    table = Table("program", "seconds, median")
    for name, value in medians.items():
        table.add_row(name, f"{value:.2f}")
    Console().print(table)
    arguments.out.write_text(json.dumps({**facts(1), "turns": turns, "medians": medians}, indent=1) + "\n")


if __name__ == "__main__":
    main()
