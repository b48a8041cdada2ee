import pytest
import torch
from transformers import SmolVLMConfig

import tokenprune as tp
from tokenprune.adapters.idefics3 import Idefics3Adapter
from tokenprune.core.errors import ModelError
from tokenprune.core.signals import PairedImage, TowerKeys, TowerStates
from tokenprune.costs.flops import projector_flops, vision_flops
from tokenprune.engine.loading import adapter_for, session_for
from tokenprune.engine.session import Session
from tokenprune.testing.checks import check_beams, check_identity, check_masking, check_second_turn
from tokenprune.testing.families.idefics3 import FAMILIES, PIXELS, tiny_idefics3, tiny_processor
from tokenprune.testing.pruners import Project, Within
from tokenprune.testing.towers import shared_tower

VISION = frozenset({PairedImage(), TowerKeys(), TowerStates()})
SCOPES = ["tile", "image"]
ROWS = (1, 0, 2)


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture
def built(family):
    return family.build("sdpa")


def config_500m():
    """SmolVLM-500M-Instruct, as its config on the hub says."""
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    text = {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15}
    text |= {"model_type": "llama", "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280}
    vision |= {"image_size": 512, "patch_size": 16}
    return SmolVLMConfig(vision_config=vision, text_config=text, scale_factor=4, image_token_id=49190)


def test_the_spec_of_the_500m_model():
    spec = Idefics3Adapter.spec_from_config(config_500m())
    assert (spec.visual_tokens, spec.vision_tokens, spec.vision_tiles) == (17 * 64, 17 * 1024, 17)
    # By hand: 12 layers of 4 d^2 + 2 * 4 d^2 multiply-adds a patch, attention inside a tile, and the patch embedding.
    d, n = 768, 1024
    assert vision_flops(spec) == 17 * n * (12 * (2 * 12 * d**2 + 4 * n * d) + 2 * 3 * 16**2 * d)
    assert projector_flops(spec) == 2 * 17 * 64 * (16 * 768) * 960


def test_beam_search(family, built):
    check_beams(family, *built, family.ask(built[1], 2, 1), Project(positions="repacked"), keep_tokens=15)


def test_budgets_are_of_images_and_divided_over_tiles(family, built):
    inputs = family.ask(built[1], 2, 1)  # 5, 3 and 3 tiles
    layout = session_for(*built).encode(inputs).layout
    assert layout.items == (0,) * 5 + (1,) * 3 + (2,) * 3
    assert layout.sizes == (45, 27, 27)
    assert layout.grids == ((3, 3),) * 11
    with tp.prune(*built, Project(), keep_tokens=15) as trace:
        built[0].generate(**inputs, max_new_tokens=1)
    assert trace.counts == [(72, 30), (27, 15)]
    kept = torch.tensor(trace.stages[0].keep[0])
    per_tile = [int(torch.isin(layout.numbers[unit], kept).sum()) for unit in layout.units[:8]]
    assert per_tile == [3] * 5 + [5] * 3
    joint = session_for(*built, scope="image").encode(inputs).layout
    assert [len(unit) for unit in joint.units] == [45, 27, 27]
    assert joint.grids == (None,) * 3


def test_an_image_that_is_not_cut(family, built):
    inputs = family.ask(built[1], 2, 1, longest=PIXELS)
    assert inputs["pixel_values"].shape[1] == 2
    for scope in SCOPES:
        layout = session_for(*built, scope=scope).encode(inputs).layout
        assert (layout.sizes, layout.grids) == ((9, 9, 9), ((3, 3),) * 3)
    check_masking(family, *built, inputs, Project(), keep_tokens=4)


@torch.no_grad()
def test_signals_follow_their_patches(family):
    """The tower sees one tile after the other; four patches make a token, in the tile's raster order."""
    model, processor = tiny_idefics3(family.kind), tiny_processor(family.kind)
    inputs, tower = family.ask(processor, 2, 1), model.base_model.vision_model
    tokens = session_for(model, processor).visual_tokens(inputs, VISION, tower=shared_tower())
    tiles = [*inputs["pixel_values"][0], *inputs["pixel_values"][1, :3]]
    for row, pixels in enumerate(tiles):
        seen = tower(pixels[None], output_hidden_states=True)
        last = tower.encoder.layers[-1]
        keys = last.self_attn.k_proj(last.layer_norm1(seen.hidden_states[-2]))
        embeds = shared_tower().project(seen.last_hidden_state, normed=True)
        of_squares = {"vision_hidden": seen.last_hidden_state, "keys": keys, "clip_image_embeds": embeds}
        for y in range(3):
            for x in range(3):
                patches = [6 * (2 * y + dy) + 2 * x + dx for dy in range(2) for dx in range(2)]
                joined = seen.last_hidden_state[0, patches].flatten()
                feature = model.base_model.connector.modality_projection(joined)
                torch.testing.assert_close(tokens.features[row, 3 * y + x], feature, atol=1e-4, rtol=1e-4)
                for name, values in of_squares.items():
                    mean = values[0, patches].mean(0)
                    torch.testing.assert_close(tokens.signals[name][row, 3 * y + x], mean, atol=1e-4, rtol=1e-4)


def test_a_second_turn(family, built):
    check_second_turn(*built, family.ask(built[1], 2, 1), keep_tokens=15)


def test_inputs_that_do_not_fit(family, built):
    adapter, inputs = adapter_for(*built), family.ask(built[1], 2, 1)
    with pytest.raises(ModelError, match=r"must be \(rows, tiles, 3, 48, 48\), got \(2, 8, 3, 40, 48\)"):
        Session(adapter).encode({**inputs, "pixel_values": inputs["pixel_values"][..., :40, :]})
    fewer = {**inputs, "pixel_values": inputs["pixel_values"].clone()}
    fewer["pixel_values"][1, 2] = 0
    with pytest.raises(ModelError, match=r"99 image placeholders, but the 10 given tiles have 9 visual tokens each"):
        Session(adapter).encode(fewer)


def test_an_image_needs_its_marker(built):
    """A prompt whose last tile is not the whole image comes from another processor."""
    inputs = FAMILIES["smolvlm"].ask(tiny_processor(), 1)
    marker = tiny_processor().tokenizer.convert_tokens_to_ids("<global-img>")
    inputs["input_ids"][inputs["input_ids"] == marker] = 1
    with pytest.raises(ModelError, match="the last of an image after <global-img>"):
        session_for(*FAMILIES["smolvlm"].build("sdpa")).encode(inputs)


@pytest.mark.parametrize("pruner", [Project(), Within(layers=(1, 3))], ids=["before", "inside"])
def test_frames_of_a_video_are_images(pruner):
    """SmolVLM's processor writes the time before each, and fills up a shorter video of a batch with frames that go."""
    model, processor = FAMILIES["smolvlm"].build("sdpa")
    pixels = torch.randint(0, 255, (5, 3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    metadata = [
        {"fps": 1, "total_num_frames": frames, "duration": frames, "frames_indices": [*range(frames)]}
        for frames in (3, 2)
    ]
    texts = ["USER: <video> is there a star ? ASSISTANT:", "USER: what <video> where ? ASSISTANT:"]
    how = {"video_metadata": metadata, "padding": True, "padding_side": "left", "return_tensors": "pt"}
    inputs = dict(processor(videos=[[pixels[:3]], [pixels[3:]]], text=texts, **how))
    check_identity(model, processor, inputs, pruner)
    trace = check_masking(FAMILIES["smolvlm"], model, processor, inputs, pruner, keep_tokens=4)
    assert trace.counts == [(27, 12), (18, 8)]
