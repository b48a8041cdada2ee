"""Each image file is RGB afterwards, or one sentence with its name."""

import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from tokenprune.core.errors import DataError
from tokenprune.tasks import images
from tokenprune.tasks.images import PictureFile, load_image

RED = (200, 30, 40)


def save(image, path, **options):
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.gif", "a.tif"])
def test_formats(tmp_path, name):
    loaded = load_image(save(Image.new("RGB", (8, 6), RED), tmp_path / name))
    assert loaded.mode == "RGB"
    assert loaded.size == (8, 6)
    assert np.abs(np.asarray(loaded, int) - RED).max() <= 8


def test_one_pixel(tmp_path):
    assert load_image(save(Image.new("RGB", (1, 1), RED), tmp_path / "a.png")).getpixel((0, 0)) == RED


def test_cmyk(tmp_path):
    loaded = load_image(save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "a.tif"))
    assert loaded.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bit_is_scaled_not_clipped(tmp_path, name):
    grey = np.linspace(0, 65535, 255).astype(np.uint16).reshape(15, 17)
    loaded = np.asarray(load_image(save(Image.fromarray(grey), tmp_path / name)))
    assert np.array_equal(loaded[..., 0], grey // 257)
    assert loaded.max() == 255


def test_alpha_is_laid_over_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (*RED, 255))
    loaded = load_image(save(image, tmp_path / "a.png"))
    assert loaded.getpixel((0, 0)) == (255, 255, 255)
    assert loaded.getpixel((1, 0)) == RED


def test_transparent_palette_and_grey_with_alpha(tmp_path):
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([9, 9, 9])
    assert load_image(save(palette, tmp_path / "p.png", transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(save(Image.new("LA", (1, 1), (0, 0)), tmp_path / "l.png")).getpixel((0, 0)) == (255, 255, 255)


def test_camera_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert load_image(save(Image.new("RGB", (8, 4)), tmp_path / "a.jpg", exif=exif)).size == (4, 8)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("turned", [False, True])
def test_size_by_the_header(tmp_path, monkeypatch, ending, turned):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(Image.new("RGB", (8, 4)), tmp_path / f"a.{ending}", **({"exif": exif} if turned else {}))
    size = load_image(path).size
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    assert PictureFile.of(path, "?").size == size == ((4, 8) if turned else (8, 4))


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    path = save(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(path).getpixel((0, 0)) == (255, 0, 0)


def broken(tmp_path, content):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    return path


def png(tmp_path, size=(64, 64)):
    noise = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    return save(Image.fromarray(noise), tmp_path / "good.png").read_bytes()


def refused(path, *words):
    with pytest.raises(DataError) as error:
        load_image(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_refused(tmp_path):
    refused(tmp_path / "none.png", "does not exist")
    refused(tmp_path, "not a file")
    refused(broken(tmp_path, b""), "empty")
    refused(broken(tmp_path, b"hello, I am a text file"), "no image format")
    refused(broken(tmp_path, png(tmp_path)[:2000]), "damaged")
    refused(broken(tmp_path, png(tmp_path)[:30]), "no image format")
    refused(broken(tmp_path, b"<html>not found</html>"), "no image format")


def test_truncated_jpeg(tmp_path):
    content = save(Image.effect_noise((200, 200), 60).convert("RGB"), tmp_path / "a.jpg").read_bytes()
    refused(broken(tmp_path, content[: len(content) // 2]), "damaged", "truncated")


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_turn_of_a_file_that_is_cut_off(tmp_path, ending):
    path = save(Image.effect_noise((90, 60), 90), tmp_path / f"a.{ending}")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(DataError, match="is damaged"):
        PictureFile.of(path, "?")
    if ending == "png":  # only its end mark is missing
        path.write_bytes(content[:-12])
        assert PictureFile.of(path, "?").size == (90, 60)


def test_huge(tmp_path, monkeypatch):
    path = save(Image.new("RGB", (40, 30)), tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    refused(path, "40 x 30", "1,000")


def test_decompression_bomb(tmp_path):
    # a PNG header alone claims 60000 x 60000 pixels; nothing of that size may be allocated
    size = b"IHDR" + (60000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    header = png(tmp_path)[:12] + size + zlib.crc32(size).to_bytes(4, "big")
    refused(broken(tmp_path, header + (9).to_bytes(4, "big") + b"IDAT" + bytes(13)), "pixels")


def test_sliver(tmp_path):
    refused(save(Image.new("RGB", (1, 201)), tmp_path / "a.png"), "1 x 201", "200-fold")
    assert load_image(save(Image.new("RGB", (1, 200)), tmp_path / "b.png")).size == (1, 200)


def test_undefined_ranges(tmp_path):
    refused(save(Image.new("F", (4, 4), 0.5), tmp_path / "a.tif"), "floating-point")
    refused(save(Image.new("I", (4, 4), 70000), tmp_path / "b.tif"), "65535")
