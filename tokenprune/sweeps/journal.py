"""Append-only files of JSON objects."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from tokenprune.core.errors import DataError

log = logging.getLogger(__name__)


class Journal:
    """An append-only file of JSON objects, one a line, that survives being killed while it writes.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """All lines of the file; a half-written last one is left out, with a warning.

        Raises:
            DataError: if another line is not a JSON object, or the file cannot be read.
        """
        return list(self)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The lines of the file as ``read`` gives them, one after another: a large file need not fit into memory."""
        try:
            with self.path.open("rb") as file:
                for number, text in enumerate(file, 1):
                    line = _parse(text)
                    if line is not None:
                        yield line
                    elif text.endswith(b"\n"):
                        what = f"{self.path} line {number} is not a JSON object"
                        raise DataError(f"{what}; mend it, or move the file away")
                    else:
                        log.warning("%s: the last line is half-written and is left out", self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from None

    def open(self) -> None:
        """Get ready to append: drop a half-written last line, or close one that lacks only its line break.

        Raises:
            OSError: if the file cannot be written.
        """
        with self.path.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            last = _last_line(file, end)
            if last.endswith(b"\n") or not last:
                return
            if _parse(last) is None:
                log.warning("%s: the last line is half-written and is dropped", self.path)
                file.truncate(end - len(last))
            else:
                file.write(b"\n")

    def append(self, *lines: Mapping[str, Any], sync: bool = True) -> None:
        """Write lines, whole ones as far as the disk has room.

        Args:
            *lines: to add.
            sync: wait until they are on the disk; without it they survive the end of this process, not of the machine.

        Raises:
            DataError: if they cannot be written.
        """
        content = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines).encode()
        try:
            with self.path.open("ab", buffering=0) as file:
                while content:
                    content = content[file.write(content) :]
                if sync:
                    os.fsync(file.fileno())
        except OSError as error:
            raise DataError(
                f"{self.path} cannot be written: {error.strerror}; all whole lines in it count, and the same command "
                "goes on from there"
            ) from None

    def sync(self) -> None:
        """Wait until all lines that were appended are on the disk."""
        self.append()


def _last_line(file: BinaryIO, end: int) -> bytes:
    """The last line of a file, with its line break if it has one; empty if the file is."""
    content, start = b"", end
    while start and b"\n" not in content[:-1]:
        start = max(0, start - (1 << 16))
        file.seek(start)
        content = file.read(end - start)
    return content[content.rfind(b"\n", 0, -1) + 1 :]


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
