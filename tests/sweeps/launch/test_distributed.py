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
        Distributed().load(lambda: None)
    assert not dist.is_initialized()


def test_options():
    with pytest.raises(ConfigError, match="timeout must be above 0 seconds, got 0"):
        Distributed(timeout=0)


LOADING = """
import sys, time
from pathlib import Path
from tokenprune.core.errors import DataError
from tokenprune.sweeps.launch.distributed import Distributed
import torch.distributed as dist

folder, wrong = Path(sys.argv[1]), sys.argv[2] == "wrong"

def prepare():
    assert dist.is_initialized(), "data loads before the group is there"
    rank = dist.get_rank()
    if rank == 0:
        time.sleep(1)
        if wrong:
            raise DataError("no such data")
        (folder / "cache").touch()
    assert (folder / "cache").exists(), "another process loads before the first one has"
    return rank

try:
    (folder / str(Distributed().load(prepare))).touch()
    dist.destroy_process_group()
except DataError as error:
    assert not dist.is_initialized()
    print(f"said {error}")
"""


@pytest.mark.parametrize("what", ["right", "wrong"])
def test_the_first_process_loads_before_the_others(tmp_path, what):
    (tmp_path / "loading.py").write_text(LOADING)
    command = [*TORCHRUN[:-2], str(tmp_path / "loading.py"), str(tmp_path), what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = {path.name for path in tmp_path.iterdir()} - {"loading.py"}
    assert found == ({"cache", "0", "1"} if what == "right" else set())
    assert done.stdout.count("said no such data") == (0 if what == "right" else 2)
