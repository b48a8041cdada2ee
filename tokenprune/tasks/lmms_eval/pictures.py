"""Pictures of a data set whose sizes are known and whose pixels are not, until somebody asks."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from tokenprune.core.errors import DataError
from tokenprune.tasks.images import lacks_end, upright_size


class Undecoded(Image.Image):
    """A picture as lmms-eval's tasks take it, which is decoded when its pixels are first used.

    Args:
        encoded: content of an image file.

    Raises:
        DataError: if its header cannot be read, or its end is missing.
    """

    def __init__(self, encoded: bytes) -> None:
        super().__init__()
        self.encoded = encoded
        try:
            with Image.open(io.BytesIO(encoded)) as header:
                size, kind = upright_size(header), header.format
        except UnidentifiedImageError:
            raise DataError("it is in no image format that Pillow reads") from None
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"it is damaged: {error}") from None
        if lacks_end(kind, encoded):
            raise DataError("it is truncated")
        self._mode, self._size = "RGB", size

    def load(self) -> Any:
        """Decode the pixels."""
        if not self._decoded:
            self.im = decode(self.encoded).im
        return super().load()

    @property
    def _decoded(self) -> bool:
        return self._im is not None

    def convert(self, mode: str | None = None, *args: Any, **options: Any) -> Image.Image:
        """Convert to a mode; to RGB, which most tasks ask for, nothing is decoded."""
        return self if mode in (None, "RGB") else decode(self.encoded).convert(mode, *args, **options)

    def copy(self) -> Image.Image:
        """A copy, as it is not decoded yet."""
        return Undecoded(self.encoded)


def decode(encoded: bytes) -> Image.Image:
    """The picture of an image file's content: RGB, upright, as ``datasets`` and lmms-eval have it.

    Raises:
        DataError: if it is damaged.
    """
    try:
        image = Image.open(io.BytesIO(encoded))
        image.load()
        return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise DataError(f"it is damaged: {error}") from None
