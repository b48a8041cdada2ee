"""The page is whole, needs nothing else, and a browser shows it."""

import shutil
import subprocess
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from PIL import Image
from strict_page import check_page

from tokenprune.report.document import Code, Heading, Items, Paragraph, Picture, Table
from tokenprune.report.page import page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NASTY = "<script>alert('x')</script> & \"y\" \x1b[0m 漢"
BLOCKS = [
    Heading(NASTY, 1),
    Heading("First", 2),
    Paragraph(NASTY),
    Items([(NASTY, NASTY)]),
    Code(NASTY),
    Heading("Second", 3),
    Table(NASTY, ["pruner", NASTY], [[NASTY, "1"], [NASTY, "2"], ["b", "3"]]),
    Picture("red.png", NASTY),
]


@pytest.fixture
def text(tmp_path):
    Image.new("RGB", (300, 200), (250, 0, 0)).save(tmp_path / "red.png")
    return page(BLOCKS, tmp_path)


def test_strict_and_self_contained(text):
    tags = check_page(text)
    assert (tags.count("img"), tags.count("table"), tags.count("h1"), tags.count("h2")) == (1, 1, 1, 1)
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize(
    "broken",
    [
        '<img src="https://example.org/a.png" alt=""/>',
        '<img src="red.png" alt=""/>',
        "<p>",
        "<script>1</script>",
        '<a href="x">y</a>',
    ],
)
def test_the_check_sees_what_is_wrong(text, broken):
    with pytest.raises((AssertionError, ET.ParseError)):
        check_page(text.replace("</h1>", f"</h1>{broken}"))


@pytest.mark.skipif(not CHROMIUM, reason="there is no chromium")
def test_a_browser_shows_it(text, tmp_path):
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    shot = tmp_path / "shot.png"
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=900,1200",
        f"--user-data-dir={tmp_path}/user",
    ]
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = [CHROMIUM, *options, offline, f"--screenshot={shot}", f"file://{tmp_path}/report.html"]
    subprocess.run(command, capture_output=True, check=True, timeout=120)
    with Image.open(shot) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    red = (pixels[..., 0] > 200) & (pixels[..., 1] < 60)
    assert 0.9 * 300 * 200 < red.sum() < 1.1 * 300 * 200  # the picture, at its size
    assert (pixels.sum(2) < 300).sum() > 1000  # text
