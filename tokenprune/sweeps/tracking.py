"""Where records go besides the disk. The only module that knows Weights & Biases.

The disk comes first: a tracker is told of a record after the record is safe, and whatever goes wrong with a tracker is
reported and costs no result.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from tokenprune.core.errors import ConfigError
from tokenprune.core.registry import Registry

_log = logging.getLogger(__name__)
QUESTION = ("sample", "kind", "question", "truth", "answer", "correct", "evidence_kept")  # columns of a table


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A cell that is finished and on the disk.

    Attributes:
        id: its key.
        label: of the pruner.
        config: resolved: model, task, pruner, budget and the rest.
        metrics: by name; empty if it failed.
        answers: some of its lines of ``samples.jsonl``, as many as the session asks for.
        picture: draws what was kept of a line: (height, width, 3) uint8, or None.
        files: what else belongs to it, such as a fitted policy.
        error: traceback if it failed.
    """

    id: str
    label: str
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    answers: Sequence[Mapping[str, Any]] = ()
    picture: Callable[[Mapping[str, Any]], Any] = lambda line: None
    files: Sequence[Path] = ()
    error: str | None = None


class Tracked:
    """A sweep or run that is being tracked; this one forgets everything.

    Attributes:
        answers: lines of ``samples.jsonl`` of each cell that it wants to be told.
    """

    answers: int = 0

    def cell(self, finished: Finished) -> None:
        """Take note of a cell that is finished."""

    def finish(self, files: Sequence[Path] = ()) -> None:
        """End the sweep, which leaves files: journal, tables, pictures."""


class Tracker(ABC):
    """A destination of records. Subclasses are frozen dataclasses; their fields are the options."""

    def check(self) -> None:  # noqa: B027 - most need nothing
        """Refuse a tracker that cannot work, before anything is computed.

        Raises:
            ConfigError: says what is missing.
        """

    @abstractmethod
    def start(self, group: str, folder: Path) -> Tracked:
        """Begin a sweep, or go on with it.

        Args:
            group: its id.
            folder: where its files are.
        """


TRACKERS: Registry[Tracker] = Registry("tracker")


@TRACKERS.register("none")
@dataclass(frozen=True)
class NoTracker(Tracker):
    """Nothing besides the disk."""

    def start(self, group: str, folder: Path) -> Tracked:
        """Do nothing."""
        return Tracked()


@TRACKERS.register("wandb")
@dataclass(frozen=True, kw_only=True)
class WandbTracker(Tracker):
    """Weights & Biases: a run a cell, in a group for the sweep, under ids that stay the same after a crash.

    Attributes:
        mode: ``offline`` writes below the sweep's folder, to be sent later, see ``tokenprune wandb-sync``; ``online``
            sends at once; ``disabled`` does neither.
        project: of the W&B runs.
        entity: user or team; None is the account's default.
        samples: questions of each cell in a table with pictures of the kept tokens; 0 for no table.
    """

    mode: Literal["offline", "online", "disabled"] = "offline"
    project: str = "tokenprune"
    entity: str | None = None
    samples: int = 24

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise ConfigError(f"samples must be at least 0, got {self.samples}")

    def check(self) -> None:
        """Refuse ``online`` without a login, and any mode without the package."""
        if find_spec("wandb") is None:
            raise ConfigError("tracking 'wandb' needs the package wandb; pip install wandb, or set tracking=none")
        if self.mode == "online":
            import wandb

            if not wandb.login(prompt=False, verify=False):
                raise ConfigError("tracking.mode online needs a login; run 'wandb login', or set tracking.mode=offline")

    def start(self, group: str, folder: Path) -> Tracked:
        """Begin a sweep, or go on with it: cells that were tracked before are not tracked again."""
        return _WandbTracked(self, group, folder)


class _WandbTracked(Tracked):
    def __init__(self, tracker: WandbTracker, group: str, folder: Path) -> None:
        self._tracker, self._group, self._folder = tracker, group, folder
        self.answers = tracker.samples
        self._tracked = folder / "wandb" / "tracked.txt"  # ids of whole runs

    def cell(self, finished: Finished) -> None:
        if finished.id in self._ids():
            return
        run = self._begin(finished.id, finished.label, finished.config, "cell")
        run.log({name: value for name, value in finished.metrics.items() if value is not None}, step=0)
        run.summary["status"] = "failed" if finished.error else "ok"
        run.summary["error"] = finished.error
        if finished.answers:
            run.log({"samples": self._table(finished)}, step=0)
        self._attach(run, finished.files)
        self._end(run, finished.id, failed=bool(finished.error))

    def finish(self, files: Sequence[Path] = ()) -> None:
        """End the sweep with a run for what is of all cells: pictures, and the journal as an artifact."""
        if files:
            import wandb

            run = self._begin(f"{self._group}-report", "report", {}, "report")
            pictures = [file for file in files if file.suffix == ".png"]
            run.log({picture.stem: wandb.Image(str(picture)) for picture in pictures}, step=0)
            self._attach(run, [file for file in files if file not in pictures])
            self._end(run, None, failed=False)

    def _begin(self, number: str, name: str, config: Mapping[str, Any], kind: str) -> Any:
        import wandb  # takes half a second, which a run without it need not pay

        self._tracked.parent.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(root_dir=str(self._folder), console="off", silent=self._tracker.mode != "online")
        of_agent = wandb.setup().settings.sweep_id is not None  # W&B's agent has given the run its id
        return wandb.init(
            project=self._tracker.project,
            entity=self._tracker.entity,
            group=self._group,
            id=None if of_agent else number,
            name=name,
            job_type=kind,
            config=dict(config),
            mode=self._tracker.mode,
            resume="allow",
            reinit="create_new",
            settings=settings,
        )

    def _end(self, run: Any, number: str | None, *, failed: bool) -> None:
        run.finish(exit_code=int(failed))
        if number and self._tracker.mode != "disabled":
            with self._tracked.open("a") as file:
                file.write(number + "\n")

    def _ids(self) -> set[str]:
        """Ids of the cells that are tracked as a whole, also by agents, which have folders of their own."""
        files = (self._tracked, *self._folder.glob("cells/*/wandb/tracked.txt"))
        return {number for file in files if file.is_file() for number in file.read_text().split()}

    def _table(self, finished: Finished) -> Any:
        import wandb

        table = wandb.Table(columns=[*QUESTION, "kept"])
        for line in finished.answers:
            drawn = finished.picture(line)
            table.add_data(*map(line.get, QUESTION), None if drawn is None else wandb.Image(drawn))
        return table

    def _attach(self, run: Any, files: Sequence[Path]) -> None:
        import wandb

        if files:
            artifact = wandb.Artifact(f"{run.id}-files", type="results")
            for file in files:
                artifact.add_file(str(file))
            run.log_artifact(artifact)


class _GuardedTracked(Tracked):
    """A session around another one, whose first failure is reported and ends the tracking, not the run."""

    def __init__(self, inner: Tracked) -> None:
        self._inner, self.answers = inner, inner.answers
        self._failed = False

    def cell(self, finished: Finished) -> None:
        if not self._failed:
            self._attempt(lambda: self._inner.cell(finished))

    def finish(self, files: Sequence[Path] = ()) -> None:
        self._attempt(lambda: self._inner.finish(files))  # also after a failure: it may hold a process or files

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # a service far away can fail in any way
            if not self._failed:
                _report(error)
            self._failed = True


def start_tracking(tracker: Tracker, group: str, folder: Path) -> Tracked:
    """Begin a session that cannot harm the run: errors of the tracker are logged as warnings and swallowed."""
    try:
        return _GuardedTracked(tracker.start(group, folder))
    except Exception as error:  # no account, no network, no package
        _report(error)
        return Tracked()


def _report(error: Exception) -> None:
    _log.warning("tracking stops (%s: %s); results go on to the disk", type(error).__name__, error)
