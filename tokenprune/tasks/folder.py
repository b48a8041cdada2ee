"""A user's own questions about a user's own images."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenprune.errors import ConfigError, DataError, hint
from tokenprune.tasks.base import Task, register_task
from tokenprune.tasks.images import load_image
from tokenprune.types import Sample

REQUIRED = ("image", "question", "answer")
OPTIONAL = ("id", "kind")


@register_task("folder")
@dataclass(frozen=True, kw_only=True)
class Folder(Task):
    """Your own questions: a JSONL or CSV file of image, question and answer.

    Attributes:
        path: the file of questions, ``.jsonl`` or ``.csv``. Each line or row has ``image`` (a file, relative to the
            file of questions), ``question`` and ``answer``, and may have ``id`` and ``kind`` (accuracy is reported per
            kind).
        num_samples: take the first so many; None takes all.
    """

    path: str
    num_samples: int | None = None

    def __post_init__(self) -> None:
        if self.num_samples is not None and self.num_samples < 1:
            raise ConfigError(f"task.num_samples must be at least 1, got {self.num_samples}")
        if Path(self.path).suffix not in (".jsonl", ".csv"):
            raise ConfigError(f"task.path must end in .jsonl or .csv, got {self.path!r}")
        if not Path(self.path).is_file():
            raise DataError(f"task.path {self.path!r} does not exist or is not a file")

    def samples(self) -> list[Sample]:
        """Read and check all questions and images.

        Raises:
            DataError: naming file and line, if something cannot be read or an id occurs twice.
        """
        samples: dict[str, Sample] = {}
        for number, row in self._rows():
            if len(samples) == self.num_samples:
                break
            sample = self._sample(number, row)
            if sample.id in samples:
                raise DataError(f"{self.path} line {number}: id {sample.id!r} occurs twice")
            samples[sample.id] = sample
        if not samples:
            raise DataError(f"{self.path} holds no questions")
        return list(samples.values())

    def _sample(self, number: int, row: dict[str, Any]) -> Sample:
        for key in row:
            if key not in REQUIRED + OPTIONAL:
                raise DataError(f"{self.path} line {number}: unknown key {key!r}; {hint(key, REQUIRED + OPTIONAL)}")
        for key in REQUIRED:
            if not isinstance(row.get(key), str | int | float) or not str(row[key]).strip():
                raise DataError(f"{self.path} line {number}: {key!r} is missing or empty")
        return Sample(
            id=str(row.get("id") or number),
            image=load_image(Path(self.path).parent / str(row["image"])),
            question=str(row["question"]).strip(),
            answer=str(row["answer"]).strip(),
            kind=str(row.get("kind") or ""),
        )

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Line number, counted from 1, and content of each question."""
        try:
            with Path(self.path).open(encoding="utf-8-sig", newline="") as file:
                if self.path.endswith(".csv"):
                    reader = csv.DictReader(file, strict=True)
                    for row in reader:
                        yield reader.line_num, row
                    return
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield number, self._parse(number, line)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self.path} cannot be read: {error}") from None

    def _parse(self, number: int, line: str) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{self.path} line {number} is not JSON: {error.msg} at column {error.colno}") from None
        if not isinstance(row, dict):
            raise DataError(f"{self.path} line {number} must be an object with {', '.join(map(repr, REQUIRED))}")
        return row
