import random

import numpy as np
import pytest

from tokenprune.embedded.scenes import (
    CELLS,
    GRID,
    IMAGE_SIZE,
    MAX_OBJECTS,
    PATCH_SIZE,
    SPLITS,
    SceneObject,
    object_tokens,
    render,
    sample_layout,
    split_of,
)


@pytest.mark.parametrize("diverse", [False, True])
def test_layouts_hold_what_they_promise(diverse):
    rng = random.Random(0)
    for _ in range(300):
        layout = sample_layout(rng, "train", diverse=diverse)
        assert (4 if diverse else 2) <= len(layout) <= MAX_OBJECTS
        assert len({(o.color, o.shape) for o in layout}) == len(layout) == len({o.cell for o in layout})
        assert all(-1 <= value <= IMAGE_SIZE + 1 for o in layout for value in o.box)


def test_splits_cannot_overlap():
    drawn = {split: [sample_layout(random.Random(f"{split}{i}"), split) for i in range(200)] for split in SPLITS}
    for split, layouts in drawn.items():
        assert {split_of(layout) for layout in layouts} == {split}
    buckets = [bucket for buckets in SPLITS.values() for bucket in buckets]
    assert sorted(buckets) == list(range(10))
    # The split is a matter of content: order, jitter and radius do not move a layout to another one.
    layout = drawn["test"][0]
    moved = tuple(
        SceneObject(o.color, o.shape, o.letter, o.cell, (o.center[0] + 1, o.center[1]), o.radius + 1)
        for o in layout[::-1]
    )
    assert split_of(moved) == "test"


def test_same_seed_same_picture_and_objects_do_not_touch():
    layout = sample_layout(random.Random(3), "test")
    first, second = (np.asarray(render(layout, random.Random(5))) for _ in range(2))
    assert first.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert (first == second).all()
    pitch = IMAGE_SIZE // CELLS
    for o in layout:
        x0, y0, x1, y1 = o.box
        assert x0 >= o.cell[1] * pitch - 1
        assert x1 <= (o.cell[1] + 1) * pitch + 1
        assert y0 >= o.cell[0] * pitch - 1
        assert y1 <= (o.cell[0] + 1) * pitch + 1


@pytest.mark.parametrize(
    ("center", "region"), [((12, 12), "top left"), ((48, 48), "center"), ((84, 48), "right"), ((48, 84), "bottom")]
)
def test_region_by_hand(center, region):
    assert SceneObject("red", "circle", None, (0, 0), center, 8).region == region


def test_object_tokens_by_hand():
    square = SceneObject("red", "square", None, (0, 0), (12, 12), 9)  # fills pixels 4..20 of both axes
    owner = object_tokens((square,)).reshape(GRID, GRID)
    covered = {index: min(21, 8 * index + 8) - max(4, 8 * index) for index in range(3)}  # pixels a side: 4, 8, 5
    for row in range(GRID):
        for column in range(GRID):
            share = covered.get(row, 0) * covered.get(column, 0) / PATCH_SIZE**2
            assert owner[row, column] == (0 if share >= 0.2 else -1)
