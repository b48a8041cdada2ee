"""What processors cut into patches, put together again."""

import numpy as np
import pytest
import torch
from PIL import Image

from tokenprune.engine.loading import session_for
from tokenprune.testing.families import families
from tokenprune.testing.families.qwen_vl import MERGE, PATCH, tiny_processor
from tokenprune.towers.pictures import Pictures, over_time, unpack
from tokenprune.towers.timm_features import denormalised

SIZES = {"patch": PATCH, "temporal": 2, "merge": MERGE}


@pytest.mark.parametrize("kind", ["Qwen2VL", "Qwen2_5_VL", "Qwen3VL"])
@pytest.mark.parametrize("shape", [(40, 40), (24, 56), (56, 16)])
def test_unpacking_inverts_the_image_processor(kind, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    processor = tiny_processor(kind).image_processor
    made = processor([Image.fromarray(image)], return_tensors="pt")
    grid = made["image_grid_thw"][0].tolist()
    assert grid == [1, shape[0] // PATCH, shape[1] // PATCH]
    pictures = unpack(made["pixel_values"], grid, **SIZES)
    assert pictures.shape == (2, 3, *shape)
    assert torch.equal(pictures[0], pictures[1])
    expected = torch.from_numpy(image).permute(2, 0, 1) / 255
    torch.testing.assert_close(denormalised(pictures[0], processor), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["Qwen2VL", "Qwen2_5_VL", "Qwen3VL"])
def test_unpacking_inverts_the_video_processor(kind):
    video = np.random.default_rng(1).integers(0, 256, (6, 24, 48, 3), dtype=np.uint8)
    processor = tiny_processor(kind).video_processor
    made = processor([video], return_tensors="pt")
    grid = made["video_grid_thw"][0].tolist()
    assert grid == [3, 6, 12]
    pictures = unpack(made["pixel_values_videos"], grid, **SIZES)
    expected = torch.from_numpy(video).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(denormalised(pictures, processor), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scope", ["frame", "video", "per_frame"])
def test_pictures_of_qwen_are_those_of_each_item(scope):
    """A frame by itself, too, in the scope in which it has a budget of its own."""

    family = families()["qwen2_5_vl"]
    model, processor = family.build("sdpa")
    inputs = family.ask(processor, 1, 0, videos=(1, 1))
    found = session_for(model, processor, scope=scope).encode(inputs).pictures
    shapes = [tuple(each.pixels.shape) for each in found]
    if scope == "per_frame":
        assert shapes == [(1, 3, 40, 40), *[(2, 3, 40, 40)] * 3, *[(2, 3, 24, 48)] * 2]
    else:
        assert shapes == [(1, 3, 40, 40), (6, 3, 40, 40), (4, 3, 24, 48)]
    (grid, *_), rows = inputs["video_grid_thw"].tolist(), inputs["pixel_values_videos"]
    whole = unpack(rows[: grid[0] * grid[1] * grid[2]], grid, **SIZES)
    assert torch.equal(torch.cat([each.pixels for each in found[1 : 4 if scope == "per_frame" else 2]]), whole)


def test_over_time():
    x = torch.arange(24.0).view(4, 3, 2)
    assert torch.equal(over_time(x, 2), torch.cat([(x[0] + x[1]) / 2, (x[2] + x[3]) / 2]))


def test_without_a_grid_there_are_none():
    assert Pictures.of(torch.zeros(3, 8, 8), None) is None
    assert Pictures.of(torch.zeros(3, 8, 8), (2, 2)).pixels.shape == (1, 3, 8, 8)
    assert Pictures.of(torch.zeros(5, 3, 8, 8), (2, 2)).pixels.shape == (5, 3, 8, 8)
