"""What a run leaves on disk: one record a cell, one line an answer, appended and never rewritten.

``runs/<id>/results.jsonl`` holds records, ``samples.jsonl`` answers. Both name their cell by a key that covers the
configuration, the code, the weights and the data: an edited pruner or another checkpoint gets other keys, so a rerun
computes anew what changed and skips what did not.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped]

from tokenprune.config import RunConfig
from tokenprune.errors import ConfigError, DataError
from tokenprune.options import construct
from tokenprune.provenance import Provenance, digest

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The result of one cell: a pruner at a budget.

    Attributes:
        run: id of the run, a hash of its configuration.
        cell: key of the cell, see the head of this file.
        label: the pruner's name with the options that differ from their defaults, for tables.
        pruner: its name and all its options.
        budget: ``{"keep_tokens": 48}`` or ``{"keep_ratio": 0.5}``; empty if nothing was pruned.
        config: the whole resolved configuration.
        provenance: what else the result depends on.
        seed: the run's.
        status: whether it was computed.
        metrics: by name; empty if it failed.
        seconds: of the whole cell.
        finished: time of the record, ISO 8601, UTC.
        error: traceback if it failed.
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

    def to_mapping(self) -> dict[str, Any]:
        """As one line of ``results.jsonl``."""
        return dataclasses.asdict(self)

    @classmethod
    def from_mapping(cls, line: Mapping[str, Any]) -> RunRecord:
        """From one line of ``results.jsonl``.

        Raises:
            ConfigError: if keys or types are not those of a record.
        """
        provenance = construct(Provenance, line.get("provenance", {}), "provenance")
        return construct(cls, {**line, "provenance": provenance}, "record")


def run_id(config: RunConfig) -> str:
    """Hash of a resolved configuration, without what does not change a result: ``output`` and ``tracking``."""
    relevant = {key: value for key, value in config.to_mapping().items() if key not in ("output", "tracking")}
    return digest(json.dumps(relevant, sort_keys=True))


class Journal:
    """An append-only file of JSON objects, one a line, that survives being killed while it writes.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """All lines; a half-written last one is left out, with a warning.

        Raises:
            DataError: if another line is not a JSON object, or the file cannot be read.
        """
        whole, rest = self._split()
        if rest:
            log.warning("%s: the last line is half-written and is left out", self.path)
        lines = []
        for number, text in enumerate(whole, 1):
            if (line := _parse(text)) is None:
                raise DataError(f"{self.path} line {number} is not a JSON object; mend it, or move the file away")
            lines.append(line)
        return lines

    def open(self) -> None:
        """Get ready to append: drop a half-written last line, or close one that lacks only its line break.

        Raises:
            OSError: if the file cannot be written.
        """
        _, rest = self._split()
        with self.path.open("ab") as file:
            if rest:
                log.warning("%s: the last line is half-written and is dropped", self.path)
                file.truncate(file.tell() - len(rest))
            elif file.tell() and not self.path.read_bytes().endswith(b"\n"):
                file.write(b"\n")

    def append(self, *lines: Mapping[str, Any]) -> None:
        """Write lines and wait until they are on the disk."""
        with self.path.open("a", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
                file.flush()
            os.fsync(file.fileno())

    def _split(self) -> tuple[list[bytes], bytes]:
        """Whole lines, and what is half-written after them."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            content = b""
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from None
        *whole, rest = content.split(b"\n")
        return ([*whole, rest], b"") if rest and _parse(rest) is not None else (whole, rest)


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


class RunFolder:
    """The folder of one run.

    Args:
        path: ``<output>/<run id>``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results = Journal(path / "results.jsonl")
        self.samples = Journal(path / "samples.jsonl")

    @classmethod
    def create(cls, config: RunConfig, *, fresh: bool = False) -> RunFolder:
        """Make the folder, or go on in it.

        Args:
            config: resolved configuration; it is written to ``config.yaml``.
            fresh: keep what is there as ``results.1.jsonl``, ``samples.1.jsonl`` (2, 3, ...) and start anew.

        Raises:
            DataError: if it cannot be written, so that this shows before anything is computed.
        """
        folder = cls(Path(config.output) / run_id(config))
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            if fresh:
                folder._set_aside()
            (folder.path / "config.yaml").write_text(yaml.safe_dump(config.to_mapping(), sort_keys=False))
            folder.results.open()
            folder.samples.open()
        except OSError as error:
            raise DataError(f"results folder {str(folder.path)!r} cannot be written: {error.strerror}") from None
        return folder

    def _set_aside(self) -> None:
        files = [journal.path for journal in (self.results, self.samples) if journal.path.exists()]
        number = next(n for n in itertools.count(1) if not any(self.path.glob(f"*.{n}.jsonl")))
        for file in files:
            file.rename(file.with_suffix(f".{number}.jsonl"))

    def records(self) -> list[RunRecord]:
        """The latest record of each pruner and budget, in the order in which they first appear."""
        latest: dict[str, RunRecord] = {}
        for line in self.results.read():
            try:
                record = RunRecord.from_mapping(line)
            except ConfigError as error:
                log.warning("%s: a record of another version is left out (%s)", self.results.path, error)
            else:
                latest[f"{record.label} {record.budget}"] = record
        return list(latest.values())

    def answers(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Lines of ``samples.jsonl`` by cell and sample."""
        cells: dict[str, dict[str, dict[str, Any]]] = {}
        for line in self.samples.read():
            cells.setdefault(str(line.get("cell")), {})[str(line.get("sample"))] = line
        return cells
