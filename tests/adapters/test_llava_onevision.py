import pytest
import torch
from transformers import LlavaOnevisionConfig, Qwen2Config

import tokenprune as tp
from tokenprune.adapters.llava_onevision import LlavaOnevisionAdapter
from tokenprune.core.errors import ModelError
from tokenprune.core.signals import PairedImage, TowerAttention, TowerKeys, TowerStates
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.costs.flops import vision_flops
from tokenprune.engine.loading import adapter_for, session_for
from tokenprune.engine.session import Session
from tokenprune.testing.checks import ROWS, check_beams, check_identity, check_masking, check_second_turn
from tokenprune.testing.families.llava_onevision import FAMILIES
from tokenprune.testing.pictures import FRAMES, picture
from tokenprune.testing.pruners import Project
from tokenprune.testing.towers import shared_tower

FAMILY, MIXED = FAMILIES["llava_onevision"], FAMILIES["llava_onevision_video"]
VISION = frozenset({PairedImage(), TowerKeys(), TowerStates()})


@pytest.fixture(params=["sdpa", "eager"])
def built(request):
    return FAMILY.build(request.param)


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture
def model():
    return FAMILY.build("sdpa")[0]


@pytest.fixture
def processor():
    return FAMILY.build("sdpa")[1]


def test_the_spec_of_the_7b_model():
    text = Qwen2Config(
        vocab_size=152128,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    )
    spec = LlavaOnevisionAdapter.spec_from_config(LlavaOnevisionConfig(text_config=text))
    assert spec == ModelSpec(
        vision_read=26,
        llm=TransformerSpec(28, 3584, 18944, 28, 4, 128, 3),
        vocabulary=152128,
        visual_tokens=7290,
        vision=TransformerSpec(26, 1152, 4304, 16, 16, 72, 2),
        vision_tokens=7290,
        vision_tiles=10,
        patch_inputs=588,
        projector=(1152, 3584, 3584),
    )
    one = 26 * (8 * 729 * 1152**2 + 4 * 729**2 * 1152 + 4 * 729 * 1152 * 4304) + 2 * 729 * 588 * 1152
    assert vision_flops(spec) == 10 * one  # tiles do not see one another


@pytest.mark.parametrize("rows", [*ROWS, (2, 2)], ids=str)
def test_beam_search(built, family, rows):
    check_beams(family, *built, family.ask(built[1], *rows), Project(positions="repacked"), keep_tokens=15)


def test_units(model, processor):
    inputs = MIXED.ask(
        processor, 2, 1
    )  # an image of five tiles, resized to 7 x 7, a video, and an image of three tiles
    layout = session_for(model, processor).encode(inputs).layout
    resized = ((5, 5), (4, 4), (4, 3), (3, 4), (3, 3))
    assert layout.grids == (*resized, *((3, 3),) * FRAMES, (5, 5), (5, 3), (5, 3))
    assert layout.items == (0,) * 5 + (1,) * FRAMES + (2,) * 3
    assert layout.sizes == (25 + 7 * 8, 9 * FRAMES + 1, 25 + 10 * 4)
    assert layout.free_tokens() == [25 + 49 + 9 * FRAMES, 55]
    joint = session_for(model, processor, scope="image").encode(inputs).layout
    assert [len(unit) for unit in joint.units] == [74, 27, 55]
    with tp.prune(model, processor, Project(), keep_tokens=15) as trace:
        model.generate(**inputs, max_new_tokens=1)
    kept = torch.tensor(trace.stages[0].keep[0])
    assert [int(torch.isin(layout.numbers[unit], kept).sum()) for unit in layout.units[:8]] == [5, 3, 3, 2, 2, 5, 5, 5]


def test_of_several_images_of_a_prompt_the_tower_sees_the_whole_alone(model, processor):
    """If the processor is told which images are of one prompt."""
    images = [[picture(0, 80, 80), picture(1, 40, 80)], [picture(2, 80, 24)]]
    texts = ["USER: <image>\n where <image>\n is there a star ? ASSISTANT:", "USER: <image>\n what ? ASSISTANT:"]
    inputs = dict(processor(images=images, text=texts, padding=True, return_tensors="pt"))
    assert inputs["batch_num_images"].tolist() == [2, 1]
    trace = check_masking(FAMILY, model, processor, inputs, Project(), keep_tokens=15)
    assert trace.counts == [(50, 30), (55, 15)]
    layout = session_for(model, processor).encode(inputs).layout
    assert layout.grids == ((5, 5),) * 3 + ((5, 3),) * 2
    alone = dict(processor(images=images[1:], text=texts[1:], return_tensors="pt"))
    assert session_for(model, processor).encode(alone).layout.ids.tolist() == layout.ids[2:].tolist()


@torch.no_grad()
def test_signals_of_images(model, processor):
    """The whole image's are of its patches; the tiles' are put together and resized as a picture would be."""
    inputs = FAMILY.ask(processor, 1)
    tokens = session_for(model, processor, scope="image").visual_tokens(inputs, VISION, tower=shared_tower())
    tower = model.base_model.vision_tower
    seen = tower(inputs["pixel_values"][0], output_hidden_states=True)
    block = tower.encoder.layers[-1]
    keys = block.self_attn.k_proj(block.layer_norm1(seen.hidden_states[-2]))
    embeds = shared_tower().project(seen.hidden_states[-1])  # which are before the last norm
    for name, x in {"vision_hidden": seen.hidden_states[-1], "keys": keys, "clip_image_embeds": embeds}.items():
        whole, tiles = x[0], x[1:].view(2, 2, 5, 5, 32)
        stitched = torch.cat([torch.cat([*row], 1) for row in tiles], 0)
        small = torch.nn.functional.interpolate(stitched.permute(2, 0, 1)[None], [7, 7], mode="bilinear")[0]
        wanted = torch.cat([whole, small.flatten(1).T])
        torch.testing.assert_close(tokens.signals[name][0], wanted)


@torch.no_grad()
def test_signals_of_videos(model, processor):
    inputs = MIXED.ask(processor, 2)
    tokens = session_for(model, processor).visual_tokens(inputs, VISION, tower=shared_tower())
    hidden = model.base_model.vision_tower(inputs["pixel_values_videos"][0], output_hidden_states=True).hidden_states
    embeds = shared_tower().project(hidden[-1])
    for name, x in {"vision_hidden": hidden[-1], "clip_image_embeds": embeds}.items():
        frames = x.view(FRAMES, 5, 5, 32).permute(0, 3, 1, 2)
        small = torch.nn.functional.interpolate(frames, [3, 3], mode="bilinear").flatten(2).mT
        torch.testing.assert_close(tokens.signals[name][5:, :9], small)


@pytest.mark.parametrize("rows", [(2,), (2, 1)], ids=str)
def test_a_second_turn(family, model, processor, rows):
    check_second_turn(model, processor, family.ask(processor, *rows), keep_tokens=15)


def test_a_budget_is_of_each_frame_if_the_scope_says_so(model, processor):
    inputs = MIXED.ask(processor, 2)  # of which the second is a video
    check_identity(model, processor, inputs, Project(), "per_frame")
    trace = check_masking(MIXED, model, processor, inputs, Project(), "per_frame", keep_tokens=3)
    kept = torch.tensor(trace.stages[0].keep[0][3:])
    first = int((inputs["input_ids"] == model.config.image_token_id).sum())
    assert kept.sub(first).div(9, rounding_mode="floor").tolist() == [0] * 3 + [1] * 3 + [2] * 3


def test_inputs_that_do_not_fit(model, processor):
    adapter, inputs = adapter_for(model, processor), MIXED.ask(processor, 2)
    with pytest.raises(ModelError, match=r"must be \(images, tiles, 3, 40, 40\)"):
        Session(adapter).encode({**inputs, "pixel_values": inputs["pixel_values"][0]})
    with pytest.raises(ModelError, match=r"must be \(videos, frames, 3, 40, 40\), got \(3, 3, 40, 40\)"):
        Session(adapter).encode({**inputs, "pixel_values_videos": inputs["pixel_values_videos"][0]})
    with pytest.raises(ModelError, match=r"placeholders \(row by row\), but the 1 given images"):
        Session(adapter).encode({**inputs, "pixel_values_videos": inputs["pixel_values_videos"][:, :2]})
    with pytest.raises(ModelError, match="no placeholder for it"), tp.prune(model, processor, Project(), keep_tokens=5):
        model.generate(input_ids=inputs["input_ids"][:, -4:], pixel_values_videos=inputs["pixel_values_videos"])


def test_its_tower_has_no_cls_token(model, processor):
    adapter = adapter_for(model, processor)
    with pytest.raises(ModelError, match="LlavaOnevisionAdapter cannot give the signals cls_attention"):
        Session(adapter).visual_tokens(FAMILY.ask(processor, 1), frozenset({TowerAttention("cls")}))
