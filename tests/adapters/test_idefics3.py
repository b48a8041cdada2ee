import pytest
import torch
from tiny import Project
from tiny_idefics3 import FAMILIES, PIXELS, tiny_idefics3, tiny_processor
from tiny_inside import Within
from tiny_plans import depthwise, random_plan
from tiny_tiles import check_beams, check_identity, check_masking, check_operations, generated, picture
from transformers import SmolVLMConfig

import tokenprune as tp
from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.adapters.idefics3 import Idefics3Adapter
from tokenprune.adapters.known import adapter_for
from tokenprune.budget import Budget
from tokenprune.errors import ModelError
from tokenprune.metrics.flops import projector_flops, vision_flops
from tokenprune.types import Sample, Signal

VISION = frozenset({Signal.KEYS, Signal.VISION_HIDDEN})
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


def test_keeping_everything_of_whole_images(family, built):
    """Of single tiles this and the next are in the contract."""
    check_identity(*built, family.ask(built[1], 2, 1), Project(positions="repacked"), "image")


@pytest.mark.parametrize("positions", ["original", "repacked"])
def test_dropping_of_whole_images(family, built, positions):
    inputs, pruner = family.ask(built[1], *ROWS), Project(positions=positions)
    trace = check_masking(family, *built, inputs, pruner, "image", keep_tokens=15)
    assert [after for _, after in trace.counts] == [15, 0, 30]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pruner", [Within(), Within(layers=(1, 3), positions="repacked")], ids=["one", "two"])
def test_dropping_inside_the_llm(family, attention, pruner):
    model, processor = family.build(attention)
    trace = check_masking(family, model, processor, family.ask(processor, *ROWS), pruner, keep_tokens=15)
    assert [after for _, after in trace.counts] == [15, 0, 30]


@pytest.mark.parametrize("plan", [depthwise(4, 3, 2), depthwise(3, 2, 0), random_plan(1)], ids=["dop", "early", "any"])
def test_operations(family, built, plan):
    check_operations(family, *built, family.ask(built[1], 2, 1), plan, keep_tokens=15)


def test_beam_search(family, built):
    check_beams(family, *built, family.ask(built[1], 2, 1), Project(positions="repacked"), keep_tokens=15)


def test_budgets_are_of_images_and_divided_over_tiles(family, built):
    inputs = family.ask(built[1], 2, 1)  # 5, 3 and 3 tiles
    layout = adapter_for(*built).encode(inputs).layout
    assert layout.items == (0,) * 5 + (1,) * 3 + (2,) * 3
    assert layout.sizes == (45, 27, 27)
    assert layout.grids == ((3, 3),) * 11
    with tp.prune(*built, Project(), keep_tokens=15) as trace:
        built[0].generate(**inputs, max_new_tokens=1)
    assert trace.counts == [(72, 30), (27, 15)]
    kept = torch.tensor(trace.stages[0].keep[0])
    per_tile = [int(torch.isin(layout.numbers[unit], kept).sum()) for unit in layout.units[:8]]
    assert per_tile == [3] * 5 + [5] * 3
    joint = adapter_for(*built, scope="image").encode(inputs).layout
    assert [len(unit) for unit in joint.units] == [45, 27, 27]
    assert joint.grids == (None,) * 3


def test_an_image_that_is_not_cut(family, built):
    inputs = family.ask(built[1], 2, 1, longest=PIXELS)
    assert inputs["pixel_values"].shape[1] == 2
    for scope in SCOPES:
        layout = adapter_for(*built, scope=scope).encode(inputs).layout
        assert (layout.sizes, layout.grids) == ((9, 9, 9), ((3, 3),) * 3)
    check_masking(family, *built, inputs, Project(), keep_tokens=4)


@torch.no_grad()
def test_signals_follow_their_patches(family):
    """The tower sees one tile after the other; four patches make a token, in the tile's raster order."""
    model, processor = tiny_idefics3(family.kind), tiny_processor(family.kind)
    inputs, tower = family.ask(processor, 2, 1), model.base_model.vision_model
    tokens = adapter_for(model, processor).visual_tokens(inputs, VISION)
    tiles = [*inputs["pixel_values"][0], *inputs["pixel_values"][1, :3]]
    for row, pixels in enumerate(tiles):
        seen = tower(pixels[None], output_hidden_states=True)
        last = tower.encoder.layers[-1]
        keys = last.self_attn.k_proj(last.layer_norm1(seen.hidden_states[-2]))
        of_squares = {"vision_hidden": seen.last_hidden_state, "keys": keys}
        for y in range(3):
            for x in range(3):
                patches = [6 * (2 * y + dy) + 2 * x + dx for dy in range(2) for dx in range(2)]
                joined = seen.last_hidden_state[0, patches].flatten()
                feature = model.base_model.connector.modality_projection(joined)
                torch.testing.assert_close(tokens.features[row, 3 * y + x], feature, atol=1e-4, rtol=1e-4)
                for name, values in of_squares.items():
                    mean = values[0, patches].mean(0)
                    torch.testing.assert_close(tokens.signals[name][row, 3 * y + x], mean, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_sample_alone_is_the_sample_in_a_batch(family, built, scope):
    batch, alone = (family.ask(built[1], 2, 1, only=only) for only in (None, 1))
    with tp.prune(*built, Project(), scope=scope, keep_tokens=15) as trace:
        tokens, logits = generated(built[0], batch)
        together = trace.stages[0].keep[1]
        single, single_logits = generated(built[0], alone)
    assert trace.stages[0].keep[0] == together
    assert single.tolist() == tokens[1:].tolist()
    torch.testing.assert_close(single_logits, logits[1:], atol=5e-5, rtol=0)
    adapter = adapter_for(*built, scope=scope)
    ids = [adapter.visual_tokens(inputs, frozenset()).row_ids.tolist() for inputs in (batch, alone)]
    assert ids[1] == ids[0][-len(ids[1]) :]
    assert len(set(ids[0])) == len(ids[0])


def test_a_second_turn(family, built):
    model, processor = built
    inputs = family.ask(processor, 2, 1)
    text = processor.tokenizer(["USER: is there a star ? ASSISTANT:"] * 2, return_tensors="pt").input_ids
    with tp.prune(model, processor, Project(), keep_tokens=15):
        first = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, text], 1)
        mask = torch.cat([inputs["attention_mask"], torch.ones(2, ids.shape[1] - inputs["input_ids"].shape[1])], 1)
        second = {**inputs, "input_ids": ids, "attention_mask": mask.long()}
        out = model.generate(**second, **{CACHE: cache_of(first)}, max_new_tokens=5)
        assert torch.equal(out, model.generate(**second, max_new_tokens=5))
        more = torch.cat([ids, inputs["input_ids"][:, -40:]], 1)
        longer = {**second, "input_ids": more, "attention_mask": torch.ones_like(more)}
        first = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
        with pytest.raises(ModelError, match="whose number of tokens varies; give them all at first"):
            model.generate(**longer, **{CACHE: cache_of(first)}, max_new_tokens=5)


def test_prepare(family, built):
    samples = [
        Sample(str(i), picture(i, *size), text, "yes")
        for i, (size, text) in enumerate([((80, 80), "is there a star ?"), ((80, 24), "where ?")])
    ]
    adapter = adapter_for(*built)
    prepared = adapter.prepare(samples)
    assert adapter.questions(prepared.inputs) == prepared.questions == ["is there a star ?", "where ?"]
    assert prepared.inputs["attention_mask"][0, -1] == 1
    pruned = adapter.prune_inputs(prepared.inputs, Project(), Budget(keep_tokens=15))
    assert pruned.layout.sizes == (17 * 9, 9 * 9)
    assert pruned.entered == [15, 15]
    assert len(adapter.generate(pruned, max_new_tokens=2)) == 2


def test_inputs_that_do_not_fit(family, built):
    adapter, inputs = adapter_for(*built), family.ask(built[1], 2, 1)
    with pytest.raises(ModelError, match=r"must be \(rows, tiles, 3, 48, 48\), got \(2, 8, 3, 40, 48\)"):
        adapter.encode({**inputs, "pixel_values": inputs["pixel_values"][..., :40, :]})
    fewer = {**inputs, "pixel_values": inputs["pixel_values"].clone()}
    fewer["pixel_values"][1, 2] = 0
    with pytest.raises(ModelError, match=r"99 image placeholders, but the 10 given tiles have 9 visual tokens each"):
        adapter.encode(fewer)
    other = tiny_processor(family.kind)
    other.image_token_id = 77
    with pytest.raises(ModelError, match="images are token 77 there, token 4 here"):
        adapter_for(built[0], other)


def test_an_image_needs_its_marker(built):
    """A prompt whose last tile is not the whole image comes from another processor."""
    inputs = FAMILIES["smolvlm"].ask(tiny_processor(), 1)
    marker = tiny_processor().tokenizer.convert_tokens_to_ids("<global-img>")
    inputs["input_ids"][inputs["input_ids"] == marker] = 1
    with pytest.raises(ModelError, match="the last of an image after <global-img>"):
        adapter_for(*FAMILIES["smolvlm"].build("sdpa")).encode(inputs)
