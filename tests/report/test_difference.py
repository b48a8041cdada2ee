"""What two pruners keep of the same images, from the journal alone."""

import numpy as np
import pytest
from PIL import Image
from report_runs import leave, random, rbf, record, usual

from tokenprune.core.errors import DataError
from tokenprune.report.contrast import choose_pruners, difference, overlap
from tokenprune.report.difference import difference_patches
from tokenprune.report.document import Picture, Table
from tokenprune.report.pictures import Place, lines_of
from tokenprune.report.rows import sections_of


def section_of(records):
    (section,) = sections_of(records, {"pruner": "cdpruner"})
    return section


def test_pixels():
    image = Image.new("RGB", (80, 80), (200, 100, 0))
    drawn = difference_patches(image, {0, 1}, {0, 2}, (2, 2)).astype(int)
    assert drawn.shape == (384, 384, 3)
    both, first, second, neither = drawn[:192, :192], drawn[:192, 192:], drawn[192:, :192], drawn[192:, 192:]
    assert (both == (200, 100, 0)).all()
    assert len(np.unique(neither)) == 1
    assert len(np.unique(first.reshape(-1, 3), axis=0)) == len(np.unique(second.reshape(-1, 3), axis=0)) == 2
    assert first.mean((0, 1))[2] > first.mean((0, 1))[0]  # blue
    assert second.mean((0, 1))[0] > second.mean((0, 1))[2]  # orange
    grey = [part.mean() for part in (first, second, neither)]
    assert min(np.diff(sorted(grey))) > 10  # told apart without colours
    # And by the direction of their hatches: along it nothing changes.
    assert (first[1:, 1:] == first[:-1, :-1]).all()
    assert not (first[1:, :-1] == first[:-1, 1:]).all()
    assert (second[1:, :-1] == second[:-1, 1:]).all()


def test_overlap_by_hand():
    def line(kept):
        return {"stages": [{"kept": [0, 1, 2, 3, 4]}, {"kept": kept}], "visual_tokens": 10}

    found = overlap({"a": line([0, 1, 2]), "b": line([0])}, {"b": line([0]), "a": line([2, 3]), "c": line([1])})
    assert (found.images, found.both, found.first_only, found.second_only) == (2, 1.0, 1.0, 0.5)
    assert found.share == pytest.approx(1 / 2.5)
    assert found.chance == pytest.approx((6 / 10 + 1 / 10) / 2)
    assert found.chance_share == pytest.approx(0.35 / (3.5 - 0.35))
    whole = {"a": {"stages": [], "visual_tokens": 10}}
    assert overlap(whole, {"a": line([1])}).second_only == 0
    assert overlap({}, whole) is None


def test_without_names_the_studied_one_and_random():
    pair = choose_pruners(section_of([*usual(), record("dart", 48, 0.5)]), None)
    assert pair.names == ("cdpruner kernel=rbf", "random")
    assert [(a.any.budget, b.any.seed) for a, b in pair.rows] == [({"keep_tokens": 48}, 0), ({"keep_tokens": 16}, 0)]
    assert choose_pruners(section_of([record("dart", 48, 0.5)]), None) is None
    assert choose_pruners(section_of([random(48, 0.5, 0)]), None) is None
    assert choose_pruners(section_of([random(48, 0.5, 0), rbf(16, 0.5)]), None) is None


def test_names():
    section = section_of([*usual(), record("dart", 48, 0.5)])
    assert choose_pruners(section, ("random", "dart")).names == ("random", "dart")
    with pytest.raises(
        DataError, match=r"no pruner 'drat' in embedded, task scenes; did you mean 'dart'\? Allowed: cd"
    ):
        choose_pruners(section, ("random", "drat"))
    with pytest.raises(DataError, match="no pruner 'none'"):
        choose_pruners(section, ("none", "dart"))


def test_told_and_drawn(folder, samples, tmp_path):
    section = section_of(folder.records())
    pair = choose_pruners(section, None)
    lines = lines_of(folder, lambda cell, sample: cell in pair.cells)
    sheet, blocks = difference(section, pair, samples[:2], lines, Place(tmp_path, "1_"))
    (table,) = (block for block in blocks if isinstance(block, Table))
    # Of 144 tokens A keeps 0 to 47 and B 20 to 67; then 0 to 15 and 20 to 35.
    chance = 48 * 48 / 144
    assert table.rows == [
        ["keep_tokens=48", "28.0", "20.0", "20.0", f"{100 * 28 / 68:.1f}", f"{100 * chance / (96 - chance):.1f}"],
        ["keep_tokens=16", "0.0", "16.0", "16.0", "0.0", f"{100 * (16 / 9) / (32 - 16 / 9):.1f}"],
    ]
    assert sheet[0][3:10] == ["cdpruner kernel=rbf", "random", 48.0, 48.0, 4, 28.0, 20.0]
    (picture,) = (block for block in blocks if isinstance(block, Picture))
    assert picture.file == "1_difference_cdpruner-kernel-rbf_random.png"
    with Image.open(tmp_path / picture.file) as drawn:
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    assert (np.abs(pixels - (0, 114, 178)).max(2) < 90).sum() > 2000


def test_no_images_no_picture(folder, tmp_path):
    section = section_of(folder.records())
    pair = choose_pruners(section, None)
    lines = lines_of(folder, lambda cell, sample: cell in pair.cells)
    _, blocks = difference(section, pair, [], lines, Place(tmp_path))
    assert not [block for block in blocks if isinstance(block, Picture)]
    assert difference(section, pair, [], {}, Place(tmp_path)) == ([], [])


def test_answers_of_another_version(tmp_path):
    folder = leave(tmp_path, usual())
    folder.samples.append({"cell": "c", "sample": "s", "kept": [1], "correct": 1.0})
    with pytest.raises(DataError, match=r"samples.jsonl is of another version; run the experiment again"):
        lines_of(folder, lambda *_: True)
