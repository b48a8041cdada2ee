"""What the wandb commands print, and that an agent's command is one that runs."""

import re
import shlex

import pytest
import wandb
import yaml
from programs import sweep_file
from typer.testing import CliRunner

from tokenprune.cli.main import app
from tokenprune.core.errors import ConfigError
from tokenprune.sweeps.grid import load_sweep
from tokenprune.sweeps.progress import prepare
from tokenprune.sweeps.wandb_commands import offline_runs


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_nothing_to_send(tmp_path):
    with pytest.raises(ConfigError, match="holds no offline W&B runs"):
        offline_runs(tmp_path)


def test_an_agent_runs_a_cell(tmp_path):
    path = sweep_file(tmp_path)
    result = call("wandb-sweep", path, "tracking.name=wandb", "tracking.entity=team")
    assert result.exit_code == 0, result.output
    made = yaml.safe_load(result.stdout)
    groups, _ = prepare(load_sweep(path))
    assert made["parameters"]["cell"]["values"] == [cell.key for group in groups for cell in group.cells]
    assert (made["name"], made["project"], made["entity"], made["method"]) == ("tiny", "tokenprune", "team", "grid")

    key = made["parameters"]["cell"]["values"][1]
    program, *command = made["command"]
    assert program == made["program"] == "tokenprune"
    assert command.pop() == "${args}"  # which an agent replaces by:
    command = [*(word for word in command if word != "tracking.mode=online"), f"--cell={key}"]
    result = call(*command)
    wandb.teardown()
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "runs/tiny/cells").iterdir()) == [key]
    (line,) = call("wandb-sync", tmp_path / "runs/tiny").stdout.splitlines()
    *program, folder = shlex.split(line)
    assert program == ["wandb", "sync"]
    assert re.fullmatch(rf"{re.escape(str(tmp_path))}/runs/tiny/cells/{key}/wandb/offline-run-.*-{key}", folder)
