"""What a run or sweep leaves."""

from __future__ import annotations

from dataclasses import dataclass

from tokenprune.core.sample import Sample
from tokenprune.sweeps.store import RunFolder, RunRecord
from tokenprune.sweeps.tracking import Tracker, start_tracking


@dataclass(frozen=True)
class Outcome:
    """What a run or sweep left.

    Attributes:
        folder: its files.
        records: one a cell, in the order of the configuration; earlier runs' included. None at all if this process
            only helped another one, see ``Launcher.assist``.
        samples: the questions of all tasks.
        tracker: where records went besides the disk.
    """

    folder: RunFolder
    records: tuple[RunRecord, ...]
    samples: tuple[Sample, ...]
    tracker: Tracker

    def track(self) -> None:
        """Tell the tracker of the files in the folder: journal, tables, pictures."""
        files = [path for path in sorted(self.folder.path.glob("[!.]*.*")) if path.is_file()]
        start_tracking(self.tracker, self.folder.path.name, self.folder.path).finish(files)

    @property
    def failed(self) -> list[RunRecord]:
        """Cells that raised an error."""
        return [record for record in self.records if record.status == "failed"]
