"""Image files to RGB, or one sentence about what is wrong with them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tokenprune.core.errors import DataError

MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs, a quarter of a gigabyte of RGB
MAX_ASPECT = 200  # long side over short side; a processor that scales the short side up makes a bomb of a sliver


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
    if not path.is_file():
        raise DataError(f"image {str(path)!r} does not exist or is not a file")
    if path.stat().st_size == 0:
        raise DataError(f"image {str(path)!r} is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked below, with the file's name
            with Image.open(path) as image:
                _check_size(image, path)
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image), path)
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


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F":
        raise DataError(f"image {str(path)!r} holds floating-point values of no defined range; save it as 8-bit")
    if image.mode.startswith("I"):  # I;16 and its byte orders, and I, in which Pillow also opens 16-bit PGM
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise DataError(f"image {str(path)!r} holds integers outside 0 to 65535; save it as 8-bit or 16-bit")
        image = Image.fromarray((values // 257).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
