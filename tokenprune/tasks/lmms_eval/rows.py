"""Rows of a benchmark as questions: what is shown and asked, without pixels until they are used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from tokenprune.core.errors import ConfigError, DataError
from tokenprune.core.turn import Clip, hash_parts
from tokenprune.tasks.lmms_eval.loading import plain_errors
from tokenprune.tasks.lmms_eval.pictures import Undecoded, decode

Part = str | Image.Image | Clip


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one of lmms-eval's tasks.

    Attributes:
        task: of lmms-eval.
        num_frames: of a video; None for those that ``fps`` gives.
        fps: frames a second of a video.
    """

    task: Any
    num_frames: int | None
    fps: float | None

    @cached_property
    def stored(self) -> Any:
        """The rows as they are stored: pictures are contents of files."""
        return self.task.eval_docs.with_format("arrow")

    @cached_property
    def pictured(self) -> tuple[str, ...]:
        """Columns that hold pictures."""
        features = self.task.eval_docs.features.items()
        return tuple(name for name, each in features if _is_image(each) or _is_image(getattr(each, "feature", None)))

    def doc(self, row: int) -> dict[str, Any]:
        """A row whose pictures are not decoded.

        Raises:
            DataError: if a picture is not one, or is cut off.
        """
        doc: dict[str, Any]
        (doc,) = self.stored[row].to_pylist()
        for name in self.pictured:
            doc[name] = self._pictures(doc[name], f"row {row}, column {name!r}")
        return doc

    def _pictures(self, value: Any, where: str) -> Any:
        if value is None or isinstance(value, list):
            return value and [self._pictures(item, where) for item in value]
        try:
            content = value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
            return Undecoded(content)
        except (DataError, OSError) as error:
            raise DataError(f"{where} of lmms-eval task {self.task.config.task!r} holds no picture: {error}") from None

    def parts(self, row: int) -> Iterator[Part]:
        """Text, pictures and videos of the user's message, in order; pictures are not decoded yet.

        Raises:
            ConfigError: if there are turns of others than the user, or sound.
            DataError: if something is missing.
        """
        doc, where = self.doc(row), f"row {row} of lmms-eval task {self.task.config.task!r}"
        with plain_errors(where):
            messages = self.task.doc_to_messages(doc)
        return message_parts(messages, where, self.num_frames, self.fps)

    def turn(self, row: int) -> Row:
        """What a row shows and asks, by headers alone."""
        parts = tuple(self.parts(row))
        shown = [part for part in parts if not isinstance(part, str)]
        shape = tuple(("video" if isinstance(part, Clip) else "image", part.size) for part in shown)
        texts = [part for part in parts if isinstance(part, str)]
        digest = hash_parts(*map(_content, parts))
        return Row(shape, sum(map(len, texts)), "\n".join(texts), digest, self, row)

    def bare(self, row: int) -> dict[str, Any]:
        """A row without its pictures."""
        doc: dict[str, Any] = self.task.eval_docs_no_media[row]
        return doc

    def answer(self, row: int) -> str:
        """The truth in words; where annotators disagree, what most of them say."""
        doc, wanted = self.bare(row), self.task.config.doc_to_target
        target = self.task.doc_to_target(doc)
        if isinstance(wanted, str) and wanted not in doc and target == wanted:
            target = doc.get(
                f"{wanted}s", ""
            )  # a template without a column, such as ``answer`` where there are answers
        if isinstance(target, list):
            said = [str(each["answer"] if isinstance(each, Mapping) else each) for each in target]
            return Counter(said).most_common(1)[0][0] if said else ""
        return str(target)


@dataclass(frozen=True, eq=False)
class Row:
    """A row's message; a ``Turn``.

    Attributes:
        shape: kinds and pixel sizes of what is shown.
        length: characters of text.
        text: all that is written.
        digest: of text and files.
        rows: where it is from.
        number: of the row.
    """

    shape: tuple[Any, ...]
    length: int
    text: str
    digest: str
    rows: Rows
    number: int

    def parts(self) -> tuple[Part, ...]:
        """Text, pictures and videos, opened now."""
        return tuple(self._opened(part) for part in self.rows.parts(self.number))

    def _opened(self, part: Part) -> Part:
        try:
            return decode(part.encoded) if isinstance(part, Undecoded) else part
        except DataError as error:
            name = self.rows.task.config.task
            raise DataError(f"row {self.number} of lmms-eval task {name!r} holds no picture: {error}") from None


def _is_image(feature: Any) -> bool:
    import datasets

    return isinstance(feature, datasets.Image)


def message_parts(
    messages: Iterable[Mapping[str, Any]], where: str, num_frames: int | None, fps: float | None
) -> Iterator[Part]:
    """Text, pictures and videos of what lmms-eval calls messages, in order.

    Args:
        messages: each with a role, and a list of contents.
        where: what to call them in errors.
        num_frames: of a video; None for those that ``fps`` gives.
        fps: frames a second of a video.

    Raises:
        ConfigError: if there are turns of others than the user, or sound.
        DataError: if a file is missing.
    """
    for message in messages:
        if message["role"] != "user":
            raise ConfigError(f"{where} has a turn of {message['role']!r}; only the user may speak")
        for part in message["content"]:
            if part["type"] == "text":
                yield part["text"]
            elif part["type"] == "image":
                yield _picture(part["url"])
            elif part["type"] == "video":
                yield _clip(part["url"], where, num_frames, fps)
            else:
                raise ConfigError(f"{where} shows {part['type']!r}; only images and videos can be")


def _clip(url: Any, where: str, num_frames: int | None, fps: float | None) -> Clip:
    given = url if isinstance(url, Mapping) else {"url": url}
    path = Path(str(given.get("url") or given.get("path") or given.get("video")))
    if not path.is_file():
        raise DataError(f"{where}: video {str(path)!r} does not exist; see docs/benchmarks.md")
    return Clip(path, num_frames, fps, given.get("video_start"), given.get("video_end"))


def _content(part: Part) -> str | bytes:
    """What stands for a part in a hash; nothing is decoded that is not yet."""
    if isinstance(part, Clip):
        return part.digest
    if isinstance(part, Undecoded):
        return part.encoded
    return part if isinstance(part, str) else part.tobytes()


def _picture(url: Any) -> Image.Image:
    """A picture of a message: an image, or the name of a file."""
    if isinstance(url, Image.Image):
        return url if isinstance(url, Undecoded) else url.convert("RGB")
    try:
        return Undecoded(Path(url).read_bytes())
    except OSError as error:
        raise DataError(f"image {str(url)!r} cannot be read: {error.strerror}") from None
