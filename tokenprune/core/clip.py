"""A video file, of which frames are taken when a model is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenprune.core.errors import ConfigError, DataError


@dataclass(frozen=True)
class VideoMetadata:
    """What a processor must know of a video to write time stamps.

    Attributes:
        total_num_frames: of the file.
        fps: frames a second of the file.
        width: pixels.
        height: pixels.
        frames_indices: which frames of the file were taken.
    """

    total_num_frames: int
    fps: float
    width: int
    height: int
    frames_indices: list[int]

    @property
    def duration(self) -> float:
        """Seconds of the whole file."""
        return self.total_num_frames / self.fps


@dataclass(frozen=True)
class Clip:
    """A video file, or a part of one.

    Attributes:
        path: the file.
        num_frames: taken, evenly spread from the first to the last; with ``fps`` the most that are taken. None for
            no limit.
        fps: frames taken a second; None for ``num_frames`` of them, or all.
        start: where the part begins, seconds; None for the beginning.
        end: where it ends, seconds; None for the end.
    """

    path: Path
    num_frames: int | None = None
    fps: float | None = None
    start: float | None = None
    end: float | None = None

    def __post_init__(self) -> None:
        if self.num_frames is not None and self.num_frames < 2:
            raise ConfigError(f"num_frames of a video must be at least 2, got {self.num_frames}")
        if self.fps is not None and not self.fps > 0:
            raise ConfigError(f"fps of a video must be above 0, got {self.fps}")

    @cached_property
    def digest(self) -> str:
        """Hash of the file's bytes and of what is taken."""
        self._check_there()
        with self.path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        taken = repr((self.num_frames, self.fps, self.start, self.end))
        return hashlib.sha256(f"{content} {taken}".encode()).hexdigest()[:32]

    @cached_property
    def size(self) -> tuple[int, int]:
        """The (width, height) in pixels, from the header.

        Raises:
            ConfigError: if PyAV is missing.
            DataError: if the file is missing, or is no video.
        """
        with self._opened() as container:
            context = container.streams.video[0].codec_context
            return context.width, context.height

    def frames(self) -> tuple[NDArray[np.uint8], VideoMetadata]:
        """Decode the frames that are taken.

        Returns:
            Frames (T, height, width, 3), RGB, and what is known of the file.

        Raises:
            ConfigError: if PyAV is missing.
            DataError: if the file is missing, cannot be decoded, or the part has one frame, which is a picture.
        """
        with self._opened() as container:
            stream = container.streams.video[0]
            times = sorted(
                float(packet.pts * packet.time_base) for packet in container.demux(stream) if packet.pts is not None
            )
            rate = float(stream.average_rate or len(times) / max(times[-1] - times[0], 1e-9)) if times else 0.0
        wanted = self._chosen(times)
        found: list[NDArray[np.uint8]] = []
        with self._opened() as container:
            last, at = int(wanted[-1]), set(wanted.tolist())
            for number, frame in enumerate(container.decode(container.streams.video[0])):
                if number in at:
                    found.append(frame.to_ndarray(format="rgb24"))
                if number == last:
                    break
        if len(found) < len(at):
            raise DataError(f"video {str(self.path)!r} is damaged: {len(found)} of {len(at)} frames can be decoded")
        height, width = found[0].shape[:2]
        return np.stack(found), VideoMetadata(len(times), rate, width, height, wanted.tolist())

    def _chosen(self, times: list[float]) -> NDArray[np.int64]:
        """Numbers of the frames that are taken, of a file whose frames are shown at these seconds."""
        shown = np.asarray(times) - (times[0] if times else 0.0)
        first, last = self.start or 0.0, float("inf") if self.end is None else self.end
        inside = np.flatnonzero((shown >= first - 1e-6) & (shown <= last + 1e-6))
        if len(inside) < 2:
            part = "" if self.start is None and self.end is None else " in the part that is asked about"
            few = "a single frame" if len(inside) else "no frame"
            raise DataError(f"video {str(self.path)!r} has {few}{part}; a video has at least two, one is a picture")
        number = len(inside)
        if self.fps is not None:
            number = max(2, min(number, round((shown[inside[-1]] - shown[inside[0]]) * self.fps)))
        number = min(number, self.num_frames or number)
        return inside[np.linspace(0.0, float(len(inside) - 1), number).astype(np.int64)]

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """The file as PyAV has it; what it raises inside comes out as one sentence."""
        try:
            import av
        except ImportError:
            raise ConfigError(f"video {str(self.path)!r} needs the package av (PyAV); pip install av") from None
        self._check_there()
        try:
            with av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise DataError(f"{str(self.path)!r} holds no video")
                yield container
        except (av.FFmpegError, ValueError, EOFError) as error:
            said = str(error).partition(":")[0]
            raise DataError(f"video {str(self.path)!r} cannot be decoded: {said}") from None

    def _check_there(self) -> None:
        if not self.path.is_file():
            raise DataError(f"video {str(self.path)!r} does not exist or is not a file")
