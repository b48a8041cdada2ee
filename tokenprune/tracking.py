"""Where records go besides the disk. The only module that knows Weights & Biases.

The disk comes first: a tracker is told of a record after the record is safe, and whatever goes wrong with a tracker is
reported and costs no result.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenprune.registry import Registry

_log = logging.getLogger(__name__)


class Session:
    """A run that is being tracked; this one forgets everything."""

    def log(self, index: int, label: str, metrics: Mapping[str, Any]) -> None:
        """A cell is finished and on the disk.

        Args:
            index: which cell of the run, from 0.
            label: of the pruner.
            metrics: of the record.
        """

    def finish(self) -> None:
        """The run ends."""


class Tracker(ABC):
    """A destination of records. Subclasses are frozen dataclasses; their fields are the options."""

    @abstractmethod
    def start(self, run: str, config: Mapping[str, Any], folder: Path) -> Session:
        """Begin a run, or go on with it.

        Args:
            run: its id.
            config: its resolved configuration.
            folder: where the run's files are.
        """


TRACKERS: Registry[Tracker] = Registry("tracker")


@TRACKERS.register("none")
@dataclass(frozen=True)
class NoTracker(Tracker):
    """Nothing besides the disk."""

    def start(self, run: str, config: Mapping[str, Any], folder: Path) -> Session:
        """Do nothing."""
        return Session()


@TRACKERS.register("wandb")
@dataclass(frozen=True, kw_only=True)
class WandbTracker(Tracker):
    """Weights & Biases: one run, resumed under the same id, with a curve over the kept tokens for each pruner.

    Attributes:
        mode: ``offline`` writes below the run's folder, to be sent later by ``wandb sync``; ``online`` sends at once;
            ``disabled`` does neither.
        project: of the W&B run.
        entity: user or team; None is the account's default.
    """

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "tokenprune"
    entity: str | None = None

    def start(self, run: str, config: Mapping[str, Any], folder: Path) -> Session:
        """Begin a W&B run whose id is the run's."""
        import wandb  # takes half a second, which a run without it need not pay

        settings = wandb.Settings(root_dir=str(folder), console="off", silent=self.mode != "online")
        started = wandb.init(
            project=self.project,
            entity=self.entity,
            id=run,
            name=f"{config['pruner']['name']}-{run}",
            config=dict(config),
            mode=self.mode,
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        return _WandbSession(started)


class _WandbSession(Session):
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, index: int, label: str, metrics: Mapping[str, Any]) -> None:
        self._run.define_metric(f"{label}/*", step_metric=f"{label}/average_tokens")
        self._run.log({f"{label}/{name}": value for name, value in metrics.items() if value is not None}, step=index)

    def finish(self) -> None:
        self._run.finish()


class _GuardedSession(Session):
    """Another session whose first failure is reported and ends the tracking, not the run."""

    def __init__(self, inner: Session) -> None:
        self._inner = inner
        self._failed = False

    def log(self, index: int, label: str, metrics: Mapping[str, Any]) -> None:
        if not self._failed:
            self._attempt(lambda: self._inner.log(index, label, metrics))

    def finish(self) -> None:
        self._attempt(self._inner.finish)  # also after a failure: it may hold a process or files

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # a service far away can fail in any way
            if not self._failed:
                _report(error)
            self._failed = True


def start_tracking(tracker: Tracker, run: str, config: Mapping[str, Any], folder: Path) -> Session:
    """Begin a session that cannot harm the run: errors of the tracker are logged as warnings and swallowed."""
    try:
        return _GuardedSession(tracker.start(run, config, folder))
    except Exception as error:  # no account, no network, no package
        _report(error)
        return Session()


def _report(error: Exception) -> None:
    _log.warning("tracking stops (%s: %s); results go on to the disk", type(error).__name__, error)
