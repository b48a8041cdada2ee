"""What a run leaves on disk: one record a cell, one line an answer, appended and never rewritten.

``<output>/<name or id>/results.jsonl`` holds records, ``samples.jsonl`` answers. Both name their cell by a key, see
``keys``: an edited pruner or another checkpoint gets other keys, so a rerun computes anew what changed and skips the
rest.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped]
from filelock import FileLock, Timeout

from tokenprune.core.errors import ConfigError, DataError
from tokenprune.core.options import construct
from tokenprune.sweeps.config import RunConfig
from tokenprune.sweeps.journal import Journal
from tokenprune.sweeps.provenance import Provenance, digest

log = logging.getLogger(__name__)
ELSEWHERE = ("output", "tracking", "launcher")  # keys that decide where things happen


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The result of one cell: a pruner at a budget.

    Attributes:
        run: id of the run or sweep that computed it, a hash of its configuration.
        cell: key of the cell.
        label: the pruner's name with the options that differ from their defaults, for tables.
        pruner: its name and all its options.
        budget: ``{"keep_tokens": 48}`` or ``{"keep_ratio": 0.5}``; empty if nothing was pruned.
        config: all that the cell was asked: ``model``, ``task``, ``pruner``, ``budget``, ``max_new_tokens``,
            ``timing_repeats``; and ``protocol`` if there is one.
        provenance: what else the result depends on.
        seed: the run's.
        status: whether it was computed.
        metrics: by name; empty if it failed.
        seconds: of answering, with the cell's share of what it had in common with others.
        answered: questions that took these seconds; fewer than all if an earlier process answered the others.
        finished: time of the record, ISO 8601, UTC.
        error: traceback if it failed.
        scoring: how tables show the task's primary metric, see ``scores.scoring_of``.
        notes: what else one should know, such as that memory ran out and batches were made smaller.
    """

    run: str
    cell: str
    label: str
    pruner: dict[str, Any]
    budget: dict[str, Any]
    config: dict[str, Any]
    provenance: Provenance
    seed: int
    status: Literal["ok", "failed"]
    metrics: dict[str, Any]
    seconds: float
    finished: str
    error: str | None = None
    answered: int = 0
    scoring: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_mapping(self) -> dict[str, Any]:
        """The record as one line of ``results.jsonl``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_mapping(cls, line: Mapping[str, Any]) -> RunRecord:
        """Make a record of one line of ``results.jsonl``.

        Raises:
            ConfigError: if keys or types are not those of a record.
        """
        provenance = construct(Provenance, line.get("provenance", {}), "provenance")
        return construct(cls, {**line, "provenance": provenance}, "record")


def run_id(config: RunConfig) -> str:
    """Hash of a resolved configuration without what changes no result: ``ELSEWHERE`` and the protocol's name."""
    relevant = {key: value for key, value in config.to_mapping().items() if key not in (*ELSEWHERE, "protocol")}
    return digest(json.dumps(relevant, sort_keys=True))


class RunFolder:
    """The folder of a run or sweep.

    Args:
        path: ``<output>/<name or id>``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results = Journal(path / "results.jsonl")
        self.samples = Journal(path / "samples.jsonl")

    @contextmanager
    def writing(self, config: Mapping[str, Any], *, fresh: bool = False, wait: bool = False) -> Iterator[None]:
        """Make the folder, or go on in it, while nobody else writes to it.

        Args:
            config: of the run or sweep; it is written to ``config.yaml``.
            fresh: keep what is there as ``results.1.jsonl``, ``samples.1.jsonl`` (2, 3, ...) and start anew.
            wait: until another run that writes to the folder ends, instead of refusing.

        Raises:
            DataError: if the folder is in use, cannot be written or is of another version, so that this shows before
                anything is computed.
        """
        lock = FileLock(self.path / ".lock")
        with self._named():
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                held = f"another run is writing to {str(self.path)!r} (it holds {lock.lock_file!r})"
                if not wait:
                    raise DataError(f"{held}; let it end, or add --wait") from None
                log.warning("%s; waiting", held)
                lock.acquire()
        try:
            with self._named():
                self._make_ready(config, fresh)
            yield
        finally:
            lock.release()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"results folder {str(self.path)!r} cannot be written: {error.strerror}") from None

    def _make_ready(self, config: Mapping[str, Any], fresh: bool) -> None:
        if fresh:
            self._set_aside()
        self.results.open()
        self.samples.open()
        for number, line in enumerate(self.results, 1):
            try:
                RunRecord.from_mapping(line)
            except ConfigError as error:
                raise DataError(
                    f"{self.results.path} line {number} is of another version of tokenprune ({error}); use another "
                    "output, or set it aside with --fresh"
                ) from None
        (self.path / "config.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))

    def _set_aside(self) -> None:
        files = [journal.path for journal in (self.results, self.samples) if journal.path.exists()]
        number = next(n for n in itertools.count(1) if not any(self.path.glob(f"*.{n}.jsonl")))
        for file in files:
            file.rename(file.with_suffix(f".{number}.jsonl"))

    def replace(self, samples: Journal, results: Sequence[Mapping[str, Any]]) -> None:
        """Put other answers and records in the place of those that are there, which are kept as with ``fresh``.

        Args:
            samples: a file in the folder, which is moved.
            results: lines of ``results.jsonl``.

        Raises:
            DataError: if they cannot be written.
        """
        new = Journal(self.path / "results.new.jsonl")
        new.path.unlink(missing_ok=True)
        new.append(*results)
        with self._named():
            self._set_aside()
            samples.path.rename(self.samples.path)
            new.path.rename(self.results.path)

    def records(self) -> list[RunRecord]:
        """The latest record of each cell that was asked for, in the order in which the cells first appear."""
        latest: dict[str, RunRecord] = {}
        for line in self.results:
            try:
                record = RunRecord.from_mapping(line)
            except ConfigError as error:
                log.warning("%s: a record of another version is left out (%s)", self.results.path, error)
            else:
                latest[_asked(record)] = record
        return list(latest.values())

    def answers(self, cells: Container[str] | None = None) -> dict[str, dict[str, dict[str, Any]]]:
        """Lines of ``samples.jsonl`` by cell and sample.

        Args:
            cells: keys of the cells that are wanted; None for all, which may be large.
        """
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for line in self.samples:
            if cells is None or line.get("cell") in cells:
                found.setdefault(str(line.get("cell")), {})[str(line.get("sample"))] = line
        return found


def _asked(record: RunRecord) -> str:
    """What a record's cell was asked, as text: all but code, weights and data. Of equal ones the latest counts."""
    shared = [record.config.get(key) for key in ("model", "task", "max_new_tokens", "timing_repeats")]
    return json.dumps([record.label, record.pruner, record.budget, *shared], sort_keys=True)
