import pytest
import torch
from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config

import tokenprune as tp
from tokenprune.adapters.internvl import InternVLAdapter
from tokenprune.core.errors import ModelError
from tokenprune.core.sample import Sample
from tokenprune.core.signals import TowerAttention, TowerKeys, TowerStates
from tokenprune.costs.model_card import load_card
from tokenprune.engine.loading import adapter_for, session_for
from tokenprune.engine.session import Session
from tokenprune.testing.checks import ROWS, check_beams, check_masking, check_second_turn
from tokenprune.testing.families.internvl import FAMILIES, MARKS, tiny_internvl, tiny_processor
from tokenprune.testing.pictures import picture
from tokenprune.testing.pruners import Project

FAMILY = FAMILIES["internvl"]
VISION = frozenset({TowerAttention("cls"), TowerKeys(), TowerStates()})


@pytest.fixture(params=["sdpa", "eager"])
def built(request):
    return FAMILY.build(request.param)


@pytest.fixture
def model():
    return FAMILY.build("sdpa")[0]


@pytest.fixture
def processor():
    return FAMILY.build("sdpa")[1]


def test_the_spec_of_the_8b_model_is_its_card():
    text = Qwen2Config(
        vocab_size=151674,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
    )
    spec = InternVLAdapter.spec_from_config(InternVLConfig(vision_config=InternVLVisionConfig(), text_config=text))
    assert spec == load_card("internvl3-8b").spec
    assert (spec.visual_tokens, spec.vision_tiles) == (13 * 256, 13)


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_beam_search(built, rows):
    """The model wants one tensor for images of unequal numbers, which ``generate`` must still repeat row by row."""
    check_beams(FAMILY, *built, FAMILY.ask(built[1], *rows), Project(positions="repacked"), keep_tokens=20)


def test_an_image_is_a_run_of_placeholders(model, processor):
    inputs = FAMILY.ask(processor, 2, 1)  # 5, 3 and 4 tiles
    layout = session_for(model, processor).encode(inputs).layout
    assert layout.items == (0,) * 5 + (1,) * 3 + (2,) * 4
    assert layout.item_rows == (0, 0, 1)
    assert layout.sizes == (125, 75, 100)
    assert layout.grids == ((5, 5),) * 12
    assert bool(layout.free.all())
    with tp.prune(model, processor, Project(), keep_tokens=20) as trace:
        model.generate(**inputs, max_new_tokens=1)
    assert trace.counts == [(200, 40), (100, 20)]
    kept = torch.tensor(trace.stages[0].keep[1])
    assert [int(torch.isin(layout.numbers[unit], kept).sum()) for unit in layout.units[8:]] == [5] * 4
    joint = session_for(model, processor, scope="image").encode(FAMILY.ask(processor, 2, 1, sizes=[(70, 70), (40, 40)]))
    assert [len(unit) for unit in joint.layout.units] == [125, 25, 125]
    assert joint.layout.grids == (None, (5, 5), None)


@torch.no_grad()
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("layer", [-1, 2])
def test_signals_are_means_of_patches(layer, norm):
    model, processor = tiny_internvl(vision={"use_qk_norm": norm}, vision_feature_layer=layer), tiny_processor()
    inputs = FAMILY.ask(processor, 1)
    tokens = session_for(model, processor).visual_tokens(inputs, VISION)
    tower = model.base_model.vision_tower
    # Which patches a visual token holds is what the model's pixel shuffle says.
    number = torch.arange(100.0).view(1, 10, 10, 1).repeat(1, 1, 1, 32)
    patches = model.base_model.pixel_shuffle(number).view(25, 4, 32)[..., 0].long()
    assert sorted(patches.flatten().tolist()) == list(range(100))
    tower.set_attn_implementation("eager")
    seen = tower(inputs["pixel_values"], output_hidden_states=True, output_attentions=True)
    index = layer % 4 - 1
    block = tower.encoder.layer[index]
    keys = block.attention.k_norm(block.attention.k_proj(block.layernorm_before(seen.hidden_states[index])))
    hidden = seen.hidden_states[layer]
    wanted = {"vision_hidden": hidden, "keys": keys, "cls_attention": seen.attentions[index][:, :, 0].mT}
    for name, x in wanted.items():
        mean = x[:, 1:][:, patches].mean(2)
        found = tokens.signals[name]
        torch.testing.assert_close(found.mT if name == "cls_attention" else found, mean)


def test_a_processor_without_a_template(model):
    bare = tiny_processor()
    bare.chat_template = None
    samples = [
        Sample.of(picture(seed, *size), "where ?", "top", id=str(seed))
        for seed, size in enumerate([(70, 70), (80, 24)])
    ]
    prepared = session_for(model, bare).prepare(samples)
    assert (prepared.inputs["input_ids"] == model.config.image_token_id).sum(1).tolist() == [125, 100]


def test_a_second_turn(model, processor):
    check_second_turn(model, processor, FAMILY.ask(processor, 2, 1), keep_tokens=20)


def test_frames_of_a_video_are_images(model, processor):
    video = torch.randint(0, 255, (1, 3, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    text = "USER: <video>\nis there a star ? ASSISTANT:"
    inputs = dict(processor(videos=list(video), text=[text], do_sample_frames=False, return_tensors="pt"))
    trace = check_masking(FAMILY, model, processor, inputs, Project(), keep_tokens=8)
    assert trace.counts == [(75, 24)]


def test_inputs_that_do_not_fit(model, processor):
    adapter, inputs = adapter_for(model, processor), FAMILY.ask(processor, 2)
    with pytest.raises(ModelError, match=r"must be \(tiles of all images, 3, 40, 40\), got \(1, 8, 3, 40, 40\)"):
        Session(adapter).encode({**inputs, "pixel_values": inputs["pixel_values"][None]})
    with pytest.raises(ModelError, match=r"number \[125, 75\], but there are 7 tiles of 25"):
        Session(adapter).encode({**inputs, "pixel_values": inputs["pixel_values"][1:]})
    less = inputs["input_ids"].clone()
    first = (less[0] == model.config.image_token_id).nonzero()[0]
    less[0, first] = 1
    with pytest.raises(ModelError, match=r"number \[124, 75\], but there are 8 tiles of 25"):
        Session(adapter).encode({**inputs, "input_ids": less})
    assert MARKS["context_image_token"] == processor.image_token


def test_no_text_tower_pairs_with_its_vision_tower(model, processor):
    with pytest.raises(ModelError, match="InternVLAdapter cannot give the signals clip_image_embeds, clip_text_embeds"):
        session_for(model, processor).check_pruner(tp.create_pruner("cdpruner", conditioning="clip_text"))


def test_the_patch_embeddings_have_no_attention():
    model, processor = tiny_internvl(vision_feature_layer=0), tiny_processor()
    with pytest.raises(ModelError, match="no attention layer before it"):
        session_for(model, processor).visual_tokens(FAMILY.ask(processor, 1), frozenset({TowerKeys()}))
