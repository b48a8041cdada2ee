"""A user's own questions about a user's own images."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tokenprune.core.errors import ConfigError, DataError, hint
from tokenprune.core.sample import Sample
from tokenprune.tasks.base import Task, register_task
from tokenprune.tasks.images import PictureFile

REQUIRED = ("image", "question", "answer")
OPTIONAL = ("id", "kind")
# By which other data sets say where the image goes; within a question it may be a word, which depends on the model.
MARKER = re.compile(r"^<(image|video)>|<(image|video)>$")


@register_task("folder")
@dataclass(frozen=True, kw_only=True)
class Folder(Task):
    """Your own questions: a JSONL or CSV file of image, question and answer.

    Attributes:
        path: the file of questions, ``.jsonl`` or ``.csv``. Each line or row has ``image`` (a file, relative to the
            file of questions), ``question`` and ``answer``, and may have ``id`` (else the line's number is the id) and
            ``kind`` (accuracy is reported per kind). A question has no ``<image>``: the image comes before it.
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
        """Read and check all questions and the headers of their images, which are decoded when they are asked about.

        Raises:
            DataError: naming file and line, if something cannot be read or asked, or an id occurs twice.
        """
        samples: dict[str, Sample] = {}
        for number, row in self._rows():
            if len(samples) == self.num_samples:
                break
            try:
                sample = self._sample(number, row)
                if sample.id in samples:
                    raise DataError(f"id {sample.id!r} occurs twice")
            except DataError as error:
                raise DataError(f"{self._place(number)}: {error}") from None
            samples[sample.id] = sample
        if not samples:
            raise DataError(f"{self.path} holds no questions")
        return list(samples.values())

    def _place(self, number: int) -> str:
        return f"{self.path} line {number}"

    def _sample(self, number: int, row: dict[str, Any]) -> Sample:
        """The question of a row; errors do not say where it is."""
        for key in row:
            if key is None:
                raise DataError("more cells than there are in the first line, which names the columns")
            if key not in REQUIRED + OPTIONAL:
                raise DataError(f"unknown key {key!r}; {hint(key, REQUIRED + OPTIONAL)}")
        text = {key: _text(key, row.get(key)) for key in REQUIRED + OPTIONAL}
        for key in REQUIRED:
            if not text[key]:
                raise DataError(f"{key!r} is missing or empty")
        if marker := MARKER.search(text["question"]):
            raise DataError(f"'question' has {marker[0]!r}; leave it out, the image comes before the question anyway")
        return Sample(
            id=text["id"] or str(number),
            turn=PictureFile.of(Path(self.path).parent / text["image"], text["question"]),
            question=text["question"],
            answer=text["answer"],
            kind=text["kind"],
            place=self._place(number),
        )

    def _rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Line number, counted from 1, and content of each question."""
        try:
            with Path(self.path).open(encoding="utf-8-sig", newline="") as file:
                yield from self._csv(file) if self.path.endswith(".csv") else self._jsonl(file)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.path} cannot be read: {error}") from None

    def _csv(self, file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
        reader = csv.DictReader(file, strict=True)
        try:
            names = reader.fieldnames or ()
            if twice := [name for name in names if names.count(name) > 1]:
                raise DataError(f"{self._place(1)}: column {twice[0]!r} occurs twice")
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            raise DataError(f"{self._place(reader.reader.line_num)} is not CSV: {error}") from None

    def _jsonl(self, file: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, self._parse(number, line)

    def _parse(self, number: int, line: str) -> dict[str, Any]:
        try:
            row = json.loads(line, object_pairs_hook=_once)
        except json.JSONDecodeError as error:
            raise DataError(f"{self._place(number)} is not JSON: {error.msg} at column {error.colno}") from None
        except (ValueError, RecursionError) as error:  # a key twice, a number too long, brackets without end
            raise DataError(f"{self._place(number)} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise DataError(f"{self._place(number)} must be an object with {', '.join(map(repr, REQUIRED))}")
        return row


def _text(key: str, value: object) -> str:
    """What a field says, 0 too; empty if there is none."""
    if value is None:
        return ""
    # JSON's true is no word that a model would say, and Python's is an integer; NaN and infinity are no numbers.
    finite = not isinstance(value, float) or math.isfinite(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not finite:
        raise DataError(f"{key!r} must be text or a number, got {json.dumps(value)[:40]}")
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{key!r} holds half a character (a surrogate by itself)") from None
    return text


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON none of whose keys occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found
