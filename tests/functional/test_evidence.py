import numpy as np
import pytest

from tokenprune.core.turn import only_picture
from tokenprune.embedded.scenes import GRID, IMAGE_SIZE
from tokenprune.functional.evidence import evidence_kept, evidence_tokens
from tokenprune.tasks.scenes import Scenes


def test_a_patch_counts_from_a_fifth_of_its_area_on():
    # 4 x 4 patches of 10 pixels; the box fills patch 5, half of patch 6, a tenth of 9
    assert evidence_tokens([(10, 10, 25, 21)], (40, 40), (4, 4)) == [5, 6]


def test_a_small_box_marks_the_patch_that_it_covers_best():
    assert evidence_tokens([(9, 10, 12, 12)], (40, 40), (4, 4)) == [5]


def test_the_raster_lies_on_the_centred_square_of_a_wide_image():
    assert evidence_tokens([(40, 0, 50, 10)], (120, 40), (4, 4)) == [0]
    assert evidence_tokens([(0, 0, 30, 40)], (120, 40), (4, 4)) == []  # cropped away
    assert evidence_tokens([(0, 40, 10, 50)], (40, 120), (4, 4)) == [0]


def test_a_raster_need_not_be_square():
    assert evidence_tokens([(30, 10, 40, 20)], (40, 20), (2, 4)) == [7]


def test_share():
    assert evidence_kept([1, 2, 5], [5, 6]) == 0.5
    assert evidence_kept([1], []) is None


@pytest.mark.parametrize("index", range(5))
def test_boxes_of_scenes_cover_the_tokens_of_their_objects(index):
    sample = Scenes(num_samples=60).samples()[index * 6 + 5]  # letter: one object, drawn over its whole box
    patches = np.asarray(only_picture(sample.turn).convert("L")).reshape(GRID, 8, GRID, 8).std(axis=(1, 3)).ravel()
    evidence = evidence_tokens(sample.boxes, (IMAGE_SIZE, IMAGE_SIZE), (GRID, GRID))
    rest = np.setdiff1d(np.arange(GRID * GRID), evidence)
    assert 4 <= len(evidence) <= 16
    assert patches[evidence].mean() > patches[rest].mean()
