"""Cells on a Ray cluster, against the same in one process."""

import subprocess
import sys

import programs
import pytest
from programs import answers, sweep_file

from tokenprune import report
from tokenprune.core.errors import ConfigError
from tokenprune.sweeps import runner
from tokenprune.sweeps.grid import load_sweep
from tokenprune.sweeps.launch import ray as module
from tokenprune.sweeps.launch.base import LAUNCHERS
from tokenprune.sweeps.launch.ray import Ray


def test_a_lost_node_changes_nothing(tmp_path):
    path = sweep_file(tmp_path)
    here = runner.sweep(load_sweep(path))
    command = [sys.executable, programs.__file__, path, tmp_path / "far"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert answers(tmp_path / "far/tiny") == answers(tmp_path / "runs/tiny")
    there = runner.sweep(load_sweep(path, [f"output={tmp_path / 'far'}"]))  # nothing is left to do
    report.write(here.folder, here.samples)
    report.write(there.folder, there.samples)
    for name in ("results.csv", "pairs.csv", "kinds.csv"):
        assert (here.folder.path / name).read_text() == (there.folder.path / name).read_text(), name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"address": "127.0.0.1:1"}, "launcher 'ray' cannot reach 127.0.0.1:1: .*refused"),
        ({"address": "ray://127.0.0.1:1"}, "cannot reach ray://127.0.0.1:1"),
        ({"address": "cluster"}, "launcher.address must be auto, host:port or ray://host:port, got 'cluster'"),
        ({"address": "127.0.0.1:99999"}, "cannot reach 127.0.0.1:99999"),
    ],
)
def test_unreachable(options, words):
    with pytest.raises(ConfigError, match=words):
        Ray(**options).check()


@pytest.mark.parametrize("options", [{"batches": 0}, {"num_cpus": -1}, {"num_gpus": -0.5}])
def test_options(options):
    with pytest.raises(ConfigError, match="launcher 'ray' needs at least 1 of batches and 0 of num_cpus and num_gpus"):
        Ray(**options)


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs the package ray; pip install 'tokenprune-mllm\[ray\]'"):
        LAUNCHERS.get("ray")().check()
