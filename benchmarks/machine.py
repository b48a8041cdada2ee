"""What a benchmark's numbers depend on besides the code."""

from __future__ import annotations

import os
import platform
import subprocess

import torch
import transformers

from tokenprune.sweeps.provenance import processor


def facts(threads: int) -> dict[str, object]:
    """Processor, cores, threads, versions and commit."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    machine = {"processor": processor(), "cores": os.cpu_count(), "threads": threads}
    return {**machine, "python": platform.python_version(), **versions, "commit": commit}
