"""What a benchmark's numbers depend on besides the code."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch
import transformers


def facts(threads: int) -> dict[str, object]:
    """Processor, cores, threads, versions and commit."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    machine = {"processor": processor(), "cores": os.cpu_count(), "threads": threads}
    return {**machine, "python": platform.python_version(), **versions, "commit": commit}


def processor() -> str:
    """The name of the CPU as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
