import pytest
import torch
from transformers import CLIPVisionConfig, Mistral3Config

import tokenprune as tp
from tokenprune.adapters.mistral3 import Mistral3Adapter
from tokenprune.core.errors import ModelError
from tokenprune.core.signals import TowerKeys, TowerStates
from tokenprune.costs.flops import projector_flops, vision_flops
from tokenprune.engine.loading import adapter_for, session_for
from tokenprune.engine.session import Session
from tokenprune.testing.checks import check_beams, check_identity, check_masking, check_second_turn
from tokenprune.testing.families.mistral3 import FAMILIES, tiny_mistral3, tiny_processor
from tokenprune.testing.pruners import Planned, Project, Within, depthwise

ROWS = (1, 0, 2)
FAMILY = FAMILIES["mistral3"]
VISION = frozenset({TowerKeys(), TowerStates()})


@pytest.fixture
def built():
    return FAMILY.build("sdpa")


def test_the_spec_of_the_24b_model():
    spec = Mistral3Adapter.spec_from_config(Mistral3Config())  # its defaults are those of the checkpoint
    assert (spec.visual_tokens, spec.vision_tokens, spec.llm.layers) == (55**2, 110**2, 40)
    d, n = 1024, 110**2
    assert vision_flops(spec) == 24 * n * (8 * d**2 + 6 * d * 4096 + 4 * n * d) + 2 * n * 3 * 14**2 * d
    assert projector_flops(spec) == 2 * 55**2 * (4 * d * d + d * 5120 + 5120**2)


def test_towers_that_are_not_known():
    with pytest.raises(ModelError, match="vision tower 'clip_vision_model' of which layer -1 is read is not known"):
        Mistral3Adapter.spec_from_config(Mistral3Config(vision_config=CLIPVisionConfig()))
    with pytest.raises(ModelError, match=r"of which layer \[-2, -1\] is read"):
        Mistral3Adapter.spec_from_config(Mistral3Config(vision_feature_layer=[-2, -1]))


def test_beam_search(built):
    check_beams(FAMILY, *built, FAMILY.ask(built[1], 2, 1), Project(positions="repacked"), keep_tokens=6)


def test_images_have_their_own_grids(built):
    layout = session_for(*built).encode(FAMILY.ask(built[1], 2, 2)).layout
    assert layout.sizes == (25, 15, 10, 9)
    assert layout.grids == ((5, 5), (3, 5), (5, 2), (3, 3))


def test_an_image_smaller_than_the_budget_keeps_all(built):
    inputs = FAMILY.ask(built[1], 2, 2)
    trace = check_masking(FAMILY, *built, inputs, Project(), keep_tokens=12)
    assert trace.counts == [(40, 24), (19, 19)]


@torch.no_grad()
@pytest.mark.parametrize("layer", [-1, 2])
def test_signals_follow_their_patches(layer):
    """The tower sees each image by itself; four patches make a token, in the image's raster order."""
    model, processor = tiny_mistral3(layer=layer), tiny_processor()
    inputs, tower = FAMILY.ask(processor, 2, 1), model.base_model.vision_tower
    tokens = session_for(model, processor).visual_tokens(inputs, VISION)
    for row, (height, width) in enumerate(inputs["image_sizes"].tolist()):
        pixels = inputs["pixel_values"][row : row + 1, :, :height, :width]
        seen = tower(pixels, image_sizes=[(height, width)], output_hidden_states=True)
        block = tower.transformer.layers[layer % 4 - 1]
        keys = block.attention.k_proj(block.attention_norm(seen.hidden_states[layer % 4 - 1]))[0]
        hidden, line = seen.hidden_states[layer][0], width // 8
        feature = model.base_model.multi_modal_projector(hidden, [(height, width)])
        number = int(tokens.valid[row].sum())
        assert number == (height // 16) * (width // 16)
        torch.testing.assert_close(tokens.features[row, :number], feature, atol=1e-4, rtol=1e-4)
        for token in range(number):
            y, x = divmod(token, width // 16)
            patches = [line * (2 * y + dy) + 2 * x + dx for dy in range(2) for dx in range(2)]
            for name, values in {"vision_hidden": hidden, "keys": keys}.items():
                mean = values[patches].mean(0)
                torch.testing.assert_close(tokens.signals[name][row, token], mean, atol=1e-4, rtol=1e-4)


def test_a_second_turn(built):
    check_second_turn(*built, FAMILY.ask(built[1], 2, 1), keep_tokens=6)


@pytest.fixture(scope="module")
def ministral():
    """Ministral 3 has this decoder: the queries of far positions are scaled, here from the eighth on."""
    rope = {"rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.5}
    rope["original_max_position_embeddings"] = 8
    return tiny_mistral3(decoder="ministral3", rope_parameters=rope), tiny_processor()


def test_ministral_before_the_llm(ministral):
    check_identity(*ministral, FAMILY.ask(ministral[1], *ROWS), Project())


@pytest.mark.parametrize("pruner", [Within(), Planned(given=depthwise(4, 3, 2))], ids=["stage", "operations"])
def test_ministral_inside_the_llm_is_refused(ministral, pruner):
    with (
        pytest.raises(ModelError, match=r"Ministral3Model scales queries by their positions.*cannot be pruned inside"),
        tp.prune(*ministral, pruner, keep_tokens=6),
    ):
        ministral[0].generate(**FAMILY.ask(ministral[1], 1), max_new_tokens=1)


def test_inputs_that_do_not_fit(built):
    adapter, inputs = adapter_for(*built), FAMILY.ask(built[1], 2, 1)
    with pytest.raises(ModelError, match=r"got \(3, 80, 80\) and 3 image_sizes"):
        Session(adapter).encode({**inputs, "pixel_values": inputs["pixel_values"][0]})
    with pytest.raises(ModelError, match=r"got \(3, 3, 80, 80\) and no image_sizes"):
        Session(adapter).encode({name: value for name, value in inputs.items() if name != "image_sizes"})
    wrong = {**inputs, "image_sizes": inputs["image_sizes"].clone()}
    wrong["image_sizes"][0, 0] = 64
    with pytest.raises(ModelError, match="but the 3 given images have"):
        Session(adapter).encode(wrong)
