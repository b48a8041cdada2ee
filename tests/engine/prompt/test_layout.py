"""The rows of a batch of unequal images and videos."""

import pytest
import torch

from tokenprune.core.budget import Budget
from tokenprune.core.errors import ModelError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.engine.prompt.encoded import Encoded
from tokenprune.engine.prompt.layout import Choice, Layout, kept_tokens, place_items
from tokenprune.engine.prompt.left import Left
from tokenprune.engine.prompt.pruned import prompt_tokens
from tokenprune.pruners.random import Random
from tokenprune.testing.families.llava import ask, tiny_processor
from tokenprune.towers.items import Item, Unit
from tokenprune.towers.pictures import content_id

SPEC = ModelSpec(TransformerSpec(4, 8, 16, 2, 2, 4, 3), vocabulary=10, visual_tokens=6)


def item(size, *units, pixel=0.0):
    rows = [Unit(torch.tensor(tokens)) for tokens in units] or [Unit(torch.arange(size))]
    return Item(torch.zeros(size, 3), rows, torch.tensor([pixel]))


def two_rows():
    """Row 0 holds an image of 4 tokens, the last in no unit, and a video of 2; row 1 an image of 6 in two units."""
    placeholder = torch.tensor([[0, 1, 1, 1, 1, 0, 1, 1], [0, 1, 1, 1, 1, 1, 1, 0]]).bool()
    items = [item(4, [0, 1, 2]), item(2, pixel=1.0), item(6, [0, 2, 4, 5], [1, 3], pixel=2.0)]
    tokens = [torch.arange(4), torch.arange(4, 6), torch.arange(6, 12)]
    return Layout.of(items, tokens, placeholder), placeholder


def test_where_everything_is():
    layout, _ = two_rows()
    assert [unit.tolist() for unit in layout.units] == [[0, 1, 2], [4, 5], [6, 8, 10, 11], [7, 9]]
    assert layout.rows.tolist() == [0, 0, 1, 1]
    assert layout.items == (0, 1, 2, 2)
    assert layout.item_rows == (0, 0, 1)
    assert layout.sizes == (4, 2, 6)
    assert layout.numbers.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
    assert layout.free.tolist() == [True] * 3 + [False] + [True] * 8
    assert layout.free_tokens() == [5, 6]
    assert len(set(layout.ids.tolist())) == 4


def test_budgets_are_of_items_and_divided_by_size():
    layout, _ = two_rows()
    counts = layout.counts(Random(), SPEC, Budget(keep_tokens=3))
    assert counts == [(3,), (2,), (3,)]  # the video has two tokens, which stay
    assert layout.divided([3, 2, 3]) == [3, 2, 2, 1]
    assert layout.divided([1, 1, 6]) == [1, 1, 4, 2]
    assert layout.divided([1, 1, 4]) == [1, 1, 3, 1]  # two thirds of four are nearer to three
    assert layout.counts(Random(), SPEC, Budget(keep_ratio=0.5)) == [(2,), (1,), (3,)]
    assert layout.counts(Random(layer=2), SPEC, Budget(average_tokens=5)) == [(3,), (2,), (4,)]
    spent = 2 * Random().plan(SPEC, (2,), 2).prefill_flops(SPEC.llm, 0)
    assert layout.counts(Random(), SPEC, Budget(flops=spent))[1] == (2,)
    assert layout.counts(Random(), SPEC, Budget(keep_tokens=7)) == [(3,), (2,), (6,)]


def test_what_stays():
    layout, _ = two_rows()
    chosen = [
        Choice((0,), TokenSelection(torch.tensor([[1]]), 3)),
        Choice((1, 3), TokenSelection(torch.tensor([[0], [1]]), 2)),
    ]
    kept = kept_tokens(layout, chosen, [2])
    assert kept.nonzero().flatten().tolist() == [1, 3, 4, 9]
    shorter = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 0]]).bool()
    prompt = prompt_tokens([(1, 1), (2, 1), (3, 2)], shorter, layout, kept, chosen)
    assert prompt.number.tolist() == [[1, 3, -1, 4], [-1, 3, -1, -1]]
    assert prompt.visual.tolist() == [[True, False, False, True], [False, True, False, False]]  # 3 is in no unit
    assert prompt.quota == [[3, 2], [3, 2]]


def test_a_row_without_images_has_no_quota():
    placeholder = torch.tensor([[0, 0], [1, 1], [0, 0]]).bool()
    layout = Layout.of([item(2)], [torch.arange(2)], placeholder)
    prompt = prompt_tokens([(2, 1)], placeholder, layout, torch.ones(2, dtype=torch.bool))
    assert prompt.quota == [[0, 0], [2, 1], [0, 0]]


def test_merged_features_take_the_place_of_the_kept_ones():
    placeholder = torch.ones(1, 6, dtype=torch.bool)
    tokens = (torch.arange(2), torch.arange(2, 6))
    layout = Layout.of([item(2), item(4)], tokens, placeholder)
    features, merged = torch.randn(6, 3), torch.randn(1, 2, 3)
    encoded = Encoded({"image": None}, features, tokens, {"image": [0, 1]}, layout)
    chosen = [Choice((1,), TokenSelection(torch.tensor([[1, 3]]), 4, merged=merged))]
    left = Left.of(encoded, chosen, [])
    assert left.kept.tolist() == [True, True, False, True, False, True]
    assert torch.equal(left.features[left.kept], torch.cat([features[:2], merged[0]]))
    appends = TokenSelection(torch.tensor([[1]]), 4, merged=merged)
    with pytest.raises(ModelError, match="appended inside the LLM only"):
        Left.of(encoded, [Choice((1,), appends)], [])


def test_modalities_are_put_in_the_order_of_the_prompt():
    tokens = (torch.arange(1), torch.arange(1, 3), torch.arange(3, 4))
    layout = Layout.of([item(1), item(2), item(1)], tokens, torch.ones(1, 4, dtype=torch.bool))
    encoded = Encoded({}, torch.empty(0), tokens, {"image": [0, 2], "video": [1]}, layout)
    found = encoded.in_order({"image": torch.tensor([10, 13]), "video": torch.tensor([11, 12])})
    assert found.tolist() == [10, 11, 12, 13]


def test_placing_items():
    place = torch.zeros(4, 6, dtype=torch.bool)
    place[0, :4], place[2, :2], place[3, :5] = True, True, True
    assert [numbers.tolist() for numbers in place_items(place, [2, 2, 2, 5])][1:3] == [[2, 3], [4, 5]]
    for sizes in ([2, 2, 2], [4, 2, 4, 1, 1], [3, 3, 5], [4, 2, 6]):
        with pytest.raises(ModelError, match=r"\[4, 0, 2, 5\] image placeholders"):
            place_items(place, sizes)


def test_content_ids_tell_images_apart_whatever_their_batch():
    pixels = ask(tiny_processor(), 3)["pixel_values"]
    changed = pixels[0].clone()
    changed[0, 0, 0] += 1e-3
    swapped = pixels[0].clone()
    swapped[:, 0], swapped[:, 1] = pixels[0, :, 1], pixels[0, :, 0]
    ids = [int(content_id(x)) for x in (*pixels, changed, swapped, torch.zeros(3, 4, 4))]
    assert len(set(ids)) == 6
    assert min(ids) >= 0
