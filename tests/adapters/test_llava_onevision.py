import pytest
import torch
from tiny import Project
from tiny_inside import Within
from tiny_llava_onevision import FAMILIES, FRAMES, tiny_llava_onevision, tiny_processor
from tiny_plans import depthwise, random_plan
from tiny_tiles import (
    ROWS,
    STEPS,
    check_beams,
    check_identity,
    check_masking,
    check_operations,
    generated,
    picture,
)
from transformers import LlavaOnevisionConfig, Qwen2Config

import tokenprune as tp
from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.adapters.known import adapter_for
from tokenprune.adapters.llava_onevision import LlavaOnevisionAdapter
from tokenprune.budget import Budget
from tokenprune.errors import ModelError
from tokenprune.metrics.flops import vision_flops
from tokenprune.types import ModelSpec, Sample, Signal, TransformerSpec

FAMILY, MIXED = FAMILIES["llava_onevision"], FAMILIES["llava_onevision_video"]
SCOPES = ["tile", "image"]
VISION = frozenset({Signal.KEYS, Signal.VISION_HIDDEN})


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


def test_keeping_everything_of_a_joint_row(built, family):
    check_identity(*built, family.ask(built[1], 2, 1), Project(), "image")


@pytest.mark.parametrize("positions", ["original", "repacked"])
@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_dropping_from_a_joint_row_is_masking(built, family, rows, positions):
    check_masking(family, *built, family.ask(built[1], *rows), Project(positions=positions), "image", keep_tokens=15)


@pytest.mark.parametrize("pruner", [Within(), Within(layers=(1, 3), positions="repacked")], ids=["one", "two"])
@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_dropping_inside_the_llm(built, family, rows, pruner):
    trace = check_masking(family, *built, family.ask(built[1], *rows), pruner, keep_tokens=15)
    assert [after for _, after in trace.counts] == [15 * number for number in rows]


@pytest.mark.parametrize("plan", [depthwise(4, 3, 2), depthwise(3, 2, 0), random_plan(1)], ids=["dop", "early", "any"])
def test_operations(built, family, plan):
    check_operations(family, *built, family.ask(built[1], 2, 1), plan, keep_tokens=15)


@pytest.mark.parametrize("rows", [*ROWS, (2, 2)], ids=str)
def test_beam_search(built, family, rows):
    check_beams(family, *built, family.ask(built[1], *rows), Project(positions="repacked"), keep_tokens=15)


def test_units(model, processor):
    inputs = MIXED.ask(
        processor, 2, 1
    )  # an image of five tiles, resized to 7 x 7, a video, and an image of three tiles
    layout = adapter_for(model, processor).encode(inputs).layout
    resized = ((5, 5), (4, 4), (4, 3), (3, 4), (3, 3))
    assert layout.grids == (*resized, *((3, 3),) * FRAMES, (5, 5), (5, 3), (5, 3))
    assert layout.items == (0,) * 5 + (1,) * FRAMES + (2,) * 3
    assert layout.sizes == (25 + 7 * 8, 9 * FRAMES + 1, 25 + 10 * 4)
    assert layout.free_tokens() == [25 + 49 + 9 * FRAMES, 55]
    joint = adapter_for(model, processor, scope="image").encode(inputs).layout
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
    layout = adapter_for(model, processor).encode(inputs).layout
    assert layout.grids == ((5, 5),) * 3 + ((5, 3),) * 2
    alone = dict(processor(images=images[1:], text=texts[1:], return_tensors="pt"))
    assert adapter_for(model, processor).encode(alone).layout.ids.tolist() == layout.ids[2:].tolist()


@torch.no_grad()
def test_signals_of_images(model, processor):
    """The whole image's are of its patches; the tiles' are put together and resized as a picture would be."""
    inputs = FAMILY.ask(processor, 1)
    tokens = adapter_for(model, processor, scope="image").visual_tokens(inputs, VISION)
    tower = model.base_model.vision_tower
    seen = tower(inputs["pixel_values"][0], output_hidden_states=True)
    block = tower.encoder.layers[-1]
    keys = block.self_attn.k_proj(block.layer_norm1(seen.hidden_states[-2]))
    for name, x in {"vision_hidden": seen.hidden_states[-1], "keys": keys}.items():
        whole, tiles = x[0], x[1:].view(2, 2, 5, 5, 32)
        stitched = torch.cat([torch.cat([*row], 1) for row in tiles], 0)
        small = torch.nn.functional.interpolate(stitched.permute(2, 0, 1)[None], [7, 7], mode="bilinear")[0]
        wanted = torch.cat([whole, small.flatten(1).T])
        torch.testing.assert_close(tokens.signals[name][0], wanted)


@torch.no_grad()
def test_signals_of_videos(model, processor):
    inputs = MIXED.ask(processor, 2)
    tokens = adapter_for(model, processor).visual_tokens(inputs, VISION)
    hidden = model.base_model.vision_tower(inputs["pixel_values_videos"][0], output_hidden_states=True).hidden_states
    frames = hidden[-1].view(FRAMES, 5, 5, 32).permute(0, 3, 1, 2)
    small = torch.nn.functional.interpolate(frames, [3, 3], mode="bilinear").flatten(2).mT
    torch.testing.assert_close(tokens.signals["vision_hidden"][5:, :9], small)


def test_a_sample_alone_is_the_sample_in_a_batch(model, processor):
    batch, alone = MIXED.ask(processor, 1, 2), MIXED.ask(processor, 1, 2, only=1)
    assert batch["pixel_values_videos"].shape == alone["pixel_values_videos"].shape
    for scope in SCOPES:
        with tp.prune(model, processor, Project(), scope=scope, keep_tokens=15) as trace:
            tokens, logits = generated(model, batch)
            together = trace.stages[0].keep[1]
            single, single_logits = generated(model, alone)
        assert trace.stages[0].keep[0] == together
        assert single.tolist() == tokens[1:].tolist()
        torch.testing.assert_close(single_logits, logits[1:], atol=5e-5, rtol=0)


def test_a_second_turn_on_a_video(model, processor):
    inputs = MIXED.ask(processor, 2)
    text = processor.tokenizer("USER: is there a star ? ASSISTANT:", add_special_tokens=False, return_tensors="pt")
    with tp.prune(model, processor, Project(), keep_tokens=15):
        first = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, text.input_ids], 1)
        second = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        out = model.generate(**second, **{CACHE: cache_of(first)}, max_new_tokens=STEPS)
        assert torch.equal(out, model.generate(**second, max_new_tokens=STEPS))


def test_prepare(model, processor):
    adapter = adapter_for(model, processor)
    pictures = [picture(0, 80, 80), picture(1, 80, 24)]
    samples = [Sample("0", pictures[0], "is there a star ?", "yes"), Sample("1", pictures[1], "where ?", "top")]
    prepared = adapter.prepare(samples)
    assert adapter.questions(prepared.inputs) == prepared.questions == ["is there a star ?", "where ?"]
    pruned = adapter.prune_inputs(prepared.inputs, Project(), Budget(keep_tokens=15))
    assert pruned.entered == [15, 15]
    assert len(adapter.generate(pruned, max_new_tokens=2)) == 2


def test_inputs_that_do_not_fit(model, processor):
    adapter, inputs = adapter_for(model, processor), MIXED.ask(processor, 2)
    with pytest.raises(ModelError, match=r"must be \(images, tiles, 3, 40, 40\)"):
        adapter.encode({**inputs, "pixel_values": inputs["pixel_values"][0]})
    with pytest.raises(ModelError, match=r"must be \(videos, frames, 3, 40, 40\), got \(3, 3, 40, 40\)"):
        adapter.encode({**inputs, "pixel_values_videos": inputs["pixel_values_videos"][0]})
    with pytest.raises(ModelError, match=r"placeholders \(row by row\), but the 1 given images"):
        adapter.encode({**inputs, "pixel_values_videos": inputs["pixel_values_videos"][:, :2]})
    with pytest.raises(ModelError, match="whose number of tokens varies; give them all at first"):
        adapter.count_images(inputs["input_ids"])
    with pytest.raises(ModelError, match="no placeholder for it"), tp.prune(model, processor, Project(), keep_tokens=5):
        model.generate(input_ids=inputs["input_ids"][:, -4:], pixel_values_videos=inputs["pixel_values_videos"])
    other = tiny_processor()
    other.image_token_id = 77
    with pytest.raises(ModelError, match="images are token 77 there"):
        adapter_for(model, other)


def test_its_tower_has_no_cls_token(model, processor):
    adapter = adapter_for(model, processor)
    with pytest.raises(ModelError, match="LlavaOnevisionAdapter cannot give the signals cls_attention"):
        adapter.visual_tokens(FAMILY.ask(processor, 1), frozenset({Signal.CLS_ATTENTION}))
    with pytest.raises(ModelError, match="cannot give the signals clip_image_embeds, clip_text_embeds"):
        adapter.check_pruner(tp.create_pruner("cdpruner"))


def test_nothing_is_left_on_the_model(processor):
    model, inputs = tiny_llava_onevision(), MIXED.ask(processor, 2, 1)
    config, hooks = model.config.to_dict(), {name: dict(m._forward_pre_hooks) for name, m in model.named_modules()}
    for pruner in (Project(), Within()):
        with tp.prune(model, processor, pruner, keep_tokens=15):
            model.generate(**inputs, max_new_tokens=2)
    assert {name: dict(m._forward_pre_hooks) for name, m in model.named_modules()} == hooks
    assert model.config.to_dict() == config
