import pytest
import torch
from transformers import LlamaConfig, LlavaNextVideoConfig

import tokenprune as tp
from tokenprune.adapters.llava_next_video import LlavaNextVideoAdapter
from tokenprune.core.errors import ModelError
from tokenprune.core.signals import TowerAttention, TowerKeys, TowerStates
from tokenprune.costs.model_card import load_card
from tokenprune.engine.loading import adapter_for, session_for
from tokenprune.engine.session import Session
from tokenprune.testing.checks import ROWS, check_beams, check_identity, check_masking, check_second_turn
from tokenprune.testing.families.llava_next_video import FAMILIES, tiny_llava_next_video, tiny_processor
from tokenprune.testing.pictures import FRAMES
from tokenprune.testing.pruners import Project

FAMILY = FAMILIES["llava_next_video"]
VISION = frozenset({TowerAttention("cls"), TowerKeys(), TowerStates()})


@pytest.fixture
def built():
    return FAMILY.build("sdpa")


def test_the_spec_of_the_7b_model_is_that_of_llava_next():
    text = LlamaConfig(vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
    spec = LlavaNextVideoAdapter.spec_from_config(LlavaNextVideoConfig(text_config=text))
    assert spec == load_card("llava-next-7b").spec


def test_units(built):
    inputs = FAMILY.ask(built[1], 2, 1)  # an image of five tiles, a video, and an image of three tiles
    layout = session_for(*built).encode(inputs).layout
    assert layout.items == (0,) * 5 + (1,) * FRAMES + (2,) * 3
    assert layout.grids[5 : 5 + FRAMES] == ((2, 2),) * FRAMES
    assert layout.free_tokens() == [5 * 16 + 4 * FRAMES, sum(map(len, layout.units[-3:]))]
    joint = session_for(*built, scope="image").encode(inputs).layout
    assert [len(unit) for unit in joint.units][:2] == [80, 4 * FRAMES]
    with tp.prune(*built, Project(), keep_tokens=10) as trace:
        built[0].generate(**inputs, max_new_tokens=1)
    kept = torch.tensor(trace.stages[0].keep[0])
    assert [int(torch.isin(layout.numbers[unit], kept).sum()) for unit in layout.units[:8]] == [2] * 5 + [3, 4, 3]


@torch.no_grad()
@pytest.mark.parametrize("mode", ["average", "max"])
def test_signals_of_videos_are_means_of_patches(mode):
    model, processor = tiny_llava_next_video(spatial_pool_mode=mode), tiny_processor()
    inputs = FAMILY.ask(processor, 2)
    tokens = session_for(model, processor).visual_tokens(inputs, VISION)
    tower = model.base_model.vision_tower
    tower.set_attn_implementation("eager")
    seen = tower(inputs["pixel_values_videos"][0], output_hidden_states=True, output_attentions=True)
    block, x = tower.encoder.layers[-2], seen.hidden_states[-3]
    wanted = {
        "vision_hidden": seen.hidden_states[-2],
        "keys": block.self_attn.k_proj(block.layer_norm1(x)),
        "cls_attention": seen.attentions[-2][:, :, 0].mT,
    }
    for name, values in wanted.items():
        found = tokens.signals[name]
        found = (found.mT if name == "cls_attention" else found)[5 : 5 + FRAMES, :4]
        squares = values[:, 1:].view(FRAMES, 4, 4, -1)
        for number in range(4):
            y, x = divmod(number, 2)
            mean = squares[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((1, 2))
            torch.testing.assert_close(found[:, number], mean)


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_beam_search(built, rows):
    check_beams(FAMILY, *built, FAMILY.ask(built[1], *rows), Project(positions="repacked"), keep_tokens=10)


def test_a_second_turn(built):
    check_second_turn(*built, FAMILY.ask(built[1], 2, 1), keep_tokens=10)


def test_a_budget_is_of_each_frame_if_the_scope_says_so(built):
    inputs = FAMILY.ask(built[1], 2)  # of which the second is a video
    check_identity(*built, inputs, Project(), "per_frame")
    trace = check_masking(FAMILY, *built, inputs, Project(), "per_frame", keep_tokens=3)
    kept = torch.tensor(trace.stages[0].keep[0][3:])
    first = int((inputs["input_ids"] == built[0].config.image_token_id).sum())
    assert kept.sub(first).div(4, rounding_mode="floor").tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_videos_that_do_not_fit(built):
    adapter, inputs = adapter_for(*built), FAMILY.ask(built[1], 2)
    with pytest.raises(ModelError, match=r"must be \(videos, frames, 3, 40, 40\), got \(3, 3, 40, 40\)"):
        Session(adapter).encode({**inputs, "pixel_values_videos": inputs["pixel_values_videos"][0]})
    with pytest.raises(ModelError, match="no image_sizes"):
        Session(adapter).encode({name: value for name, value in inputs.items() if name != "image_sizes"})
