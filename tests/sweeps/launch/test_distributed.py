"""Processes of one group, against one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from programs import answers, sweep_file

from tokenprune.core.errors import ConfigError
from tokenprune.sweeps import runner
from tokenprune.sweeps.grid import load_sweep
from tokenprune.sweeps.launch.distributed import Distributed

PACKAGE = Path(runner.__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tokenprune"]


def _run(*arguments):
    done = subprocess.run([*TORCHRUN, "sweep", *map(str, arguments)], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def test_two_processes_answer_what_one_does(tmp_path):
    path = sweep_file(tmp_path)
    runner.sweep(load_sweep(path))
    far = f"output={tmp_path / 'far'}"
    status, out, err = _run(path, "--launcher", "distributed", far)
    assert status == 0, err
    assert out.count("report:") == 1, "one of the processes reports"
    assert answers(tmp_path / "far/tiny") == answers(tmp_path / "runs/tiny")
    journal = (tmp_path / "far/tiny/results.jsonl").read_text()
    runner.sweep(load_sweep(path, [far]))  # nothing is left to do
    assert (tmp_path / "far/tiny/results.jsonl").read_text() == journal


def test_a_mistake_is_said_and_nobody_waits(tmp_path):
    status, _, err = _run(sweep_file(tmp_path), "--launcher", "distributed", "grid.budget.keep_tokens=[0]")
    assert status
    assert "tokenprune: budget.keep_tokens=0 pruner=" in err
    assert "keep_tokens must be" in err
    assert f'File "{PACKAGE}{os.sep}' not in err, "a traceback of ours; torchrun prints one of its own"


def test_alone_it_is_refused(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="needs the processes of a program such as torchrun: torchrun --nproc"):
        Distributed().assist()
    assert not dist.is_initialized()


def test_options():
    with pytest.raises(ConfigError, match="timeout must be above 0 seconds, got 0"):
        Distributed(timeout=0)
