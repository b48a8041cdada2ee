"""Image files to RGB, or one sentence about what is wrong with them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from tokenprune.core.errors import DataError
from tokenprune.core.turn import hash_parts

MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs, a quarter of a gigabyte of RGB
MAX_ASPECT = 200  # long side over short side; a processor that scales the short side up makes a bomb of a sliver
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}  # marks after the last pixel, by format


def load_image(path: Path) -> Image.Image:
    """Read an image file, whole, as RGB and upright.

    Sixteen-bit grey is scaled to eight bits (Pillow alone would clip it to white), transparency is laid over white,
    CMYK is converted, the camera's rotation is applied, and of an animation the first frame is taken. Any size from
    1 x 1 pixel up to ``MAX_PIXELS`` is fine.

    Args:
        path: the file.

    Raises:
        DataError: if it is missing, empty, truncated, not an image, too large, too elongated, or of a value range that
            is not defined (floating point).
    """
    with _opened(path) as image:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image), path)


@dataclass(frozen=True, eq=False)
class PictureFile:
    """A turn of a picture in a file and a question after it; the file is read for its hash, and decoded when asked.

    Attributes:
        path: the file.
        question: as it is asked.
        size: (width, height) of the upright picture in pixels, from the header.
    """

    path: Path
    question: str
    size: tuple[int, int]

    @classmethod
    def of(cls, path: Path, question: str) -> PictureFile:
        """Read the header of a picture.

        Raises:
            DataError: if the file is missing, or its header or a missing end shows that ``load_image`` would refuse it.
        """
        with _opened(path) as image:
            _check_mode(image, path)
            size, kind = upright_size(image), image.format
        if lacks_end(kind, path.read_bytes()):
            load_image(path)  # all pixels may be there even so; if not, that is said now
        return cls(path, question, size)

    @property
    def shape(self) -> tuple[Any, ...]:
        """Of the picture its kind and (width, height) in pixels."""
        return (("image", self.size),)

    @property
    def length(self) -> int:
        """Characters of the question."""
        return len(self.question)

    @property
    def text(self) -> str:
        """The question."""
        return self.question

    @cached_property
    def digest(self) -> str:
        """Hash of the question and the bytes of the file."""
        try:
            return hash_parts(self.question, self.path.read_bytes())
        except OSError as error:
            raise DataError(f"image {str(self.path)!r} cannot be read: {error.strerror}") from None

    def parts(self) -> tuple[Image.Image | str, ...]:
        """The picture, decoded now, and then the question."""
        return load_image(self.path), self.question


def upright_size(image: Image.Image) -> tuple[int, int]:
    """The (width, height) in pixels that an opened picture has once the camera's rotation is applied; not decoded."""
    width, height = image.size
    # Of a PNG file without EXIF the question alone would decode all of it; of TIFF Pillow gives the upright size.
    sideways = "exif" in image.info and image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return (height, width) if sideways else (width, height)


def lacks_end(kind: str | None, content: bytes) -> bool:
    """Whether an image file lacks the mark that formats put at their end; nothing is decoded.

    Args:
        kind: format as Pillow calls it; of one that has no such mark nothing is known.
        content: of the file.
    """
    return ENDS.get(kind or "", b"") not in content


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A file of which the header is read; what Pillow raises inside comes out as one sentence."""
    if not path.is_file():
        raise DataError(f"image {str(path)!r} does not exist or is not a file")
    if path.stat().st_size == 0:
        raise DataError(f"image {str(path)!r} is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked below, with the file's name
            with Image.open(path) as image:
                _check_size(image, path)
                yield image
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"image {str(path)!r} is in no image format that Pillow reads") from None
    except Image.DecompressionBombError:
        raise DataError(f"image {str(path)!r} has more than {MAX_PIXELS:,} pixels") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # what Pillow's decoders raise on damaged files
        raise DataError(f"image {str(path)!r} is damaged: {error}") from None


def _check_size(image: Image.Image, path: Path) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"image {str(path)!r} has {width} x {height} pixels, more than {MAX_PIXELS:,}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DataError(f"image {str(path)!r} is {width} x {height} pixels; sides may differ {MAX_ASPECT}-fold at most")


def _check_mode(image: Image.Image, path: Path) -> None:
    if image.mode == "F":
        raise DataError(f"image {str(path)!r} holds floating-point values of no defined range; save it as 8-bit")


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    _check_mode(image, path)
    if image.mode.startswith("I"):  # I;16 and its byte orders, and I, in which Pillow also opens 16-bit PGM
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"image {str(path)!r} holds integers outside 0 to 65535; save it as 8-bit or 16-bit")
        image = Image.fromarray((values // 257).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
