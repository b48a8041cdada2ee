"""What Weights & Biases' own commands need to be told. Nothing is sent from here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenprune.core.errors import ConfigError
from tokenprune.sweeps.grid import Sweep
from tokenprune.sweeps.progress import prepare


def offline_runs(folder: Path) -> list[Path]:
    """Folders of W&B runs below a sweep's folder that were written offline, oldest first.

    Raises:
        ConfigError: if there are none.
    """
    found = sorted([*folder.glob("wandb/offline-run-*"), *folder.glob("cells/*/wandb/offline-run-*")])
    if not found:
        raise ConfigError(f"{str(folder)!r} holds no offline W&B runs; track with tracking.name=wandb first")
    return found


def agent_sweep(asked: Sweep, file: Path, overrides: list[str]) -> dict[str, Any]:
    """A W&B sweep whose agents run the cells of a sweep, one each; what ``wandb sweep`` takes as YAML.

    Args:
        asked: the sweep.
        file: that it was loaded from.
        overrides: ``dotted.key=value``, with which it was loaded.

    Raises:
        TokenPruneError: if something is wrong with the sweep.
    """
    groups, folder = prepare(asked)
    config = groups[0].experiment.config
    options = {"project": "tokenprune", **config.tracking.options} if config.tracking.name == "wandb" else {}
    tracking = ["tracking.name=wandb", "tracking.mode=online"]
    return {
        "name": folder.path.name,
        **{key: options[key] for key in ("project", "entity") if options.get(key)},
        "method": "grid",
        "parameters": {"cell": {"values": [cell.key for group in groups for cell in group.cells]}},
        "program": "tokenprune",
        "command": ["tokenprune", "sweep", str(file.resolve()), *overrides, *tracking, "${args}"],
    }
