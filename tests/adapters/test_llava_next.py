import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig

import tokenprune as tp
from tokenprune.adapters.llava_next import LlavaNextAdapter
from tokenprune.core.errors import ModelError
from tokenprune.core.sample import Sample
from tokenprune.core.signals import TowerAttention, TowerKeys, TowerStates
from tokenprune.costs.model_card import load_card
from tokenprune.engine.loading import adapter_for, session_for
from tokenprune.engine.session import Session
from tokenprune.pruners.none import NoPruning
from tokenprune.testing.checks import ROWS, STEPS, check_beams, check_identity, check_masking, check_second_turn
from tokenprune.testing.families.llava_next import FAMILIES, tiny_llava_next, tiny_processor
from tokenprune.testing.pictures import picture
from tokenprune.testing.pruners import Project, Within

VISION = frozenset({TowerAttention("cls"), TowerKeys(), TowerStates()})
FAMILY = FAMILIES["llava_next"]


@pytest.fixture(params=["sdpa", "eager"])
def built(request):
    return FAMILY.build(request.param)


@pytest.fixture
def model():
    return FAMILY.build("sdpa")[0]


@pytest.fixture
def processor():
    return FAMILY.build("sdpa")[1]


def config_7b(**changes):
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
    return LlavaNextConfig(vision_config=vision, text_config=text, image_token_index=32000, **changes)


def test_the_spec_of_the_7b_model_is_its_card():
    spec = LlavaNextAdapter.spec_from_config(config_7b())
    assert spec == load_card("llava-next-7b").spec
    assert (spec.visual_tokens, spec.vision_tiles) == (2880, 5)


def test_budgets_are_of_images_and_divided_over_tiles(model, processor):
    inputs = FAMILY.ask(processor, 2, 1)  # 5, 3 and 3 tiles; of the third, each tile is three patches wide
    with tp.prune(model, processor, Project(), keep_tokens=20) as trace:
        model.generate(**inputs, max_new_tokens=1)
    assert trace.counts == [(200, 40), (55, 20)]
    adapter = adapter_for(model, processor)
    layout = Session(adapter).encode(inputs).layout
    assert layout.grids == ((5, 5),) * 5 + ((5, 5),) * 3 + ((5, 5), (5, 3), (5, 3))
    assert [len(unit) for unit in layout.units] == [25] * 9 + [15, 15]
    assert int((~layout.free).sum()) == 10 + 5 + 10  # a newline for each line of patches
    kept = torch.tensor(trace.stages[0].keep[0])
    per_tile = [int(torch.isin(layout.numbers[unit], kept).sum()) for unit in layout.units[:8]]
    assert per_tile == [4] * 5 + [7, 6, 7]
    flat = session_for(model, processor).encode(FAMILY.ask(processor, 1, sizes=[(24, 80)])).layout
    assert flat.grids == ((5, 5), (3, 5), (3, 5))
    joint = session_for(model, processor, scope="image").encode(inputs).layout
    assert [len(unit) for unit in joint.units] == [125, 75, 55]
    assert joint.grids == (None,) * 3


@torch.no_grad()
@pytest.mark.parametrize("layer", [-2, 2])
def test_signals_follow_their_patches(layer):
    """Each visual token is the projection of one patch of one tile; its signals must be of that patch."""
    model, processor = tiny_llava_next(vision_feature_layer=layer), tiny_processor()
    inputs, adapter = FAMILY.ask(processor, 2, 1), adapter_for(model, processor, scope="image")
    tokens = Session(adapter).visual_tokens(inputs, VISION)
    tower = model.base_model.vision_tower
    tower.set_attn_implementation("eager")
    for row, tiles in enumerate((5, 3, 3)):
        seen = tower(inputs["pixel_values"][row, :tiles], output_hidden_states=True, output_attentions=True)
        hidden, index = seen.hidden_states[layer][:, 1:], layer % 5 - 1
        block = tower.encoder.layers[index]
        keys = block.self_attn.k_proj(block.layer_norm1(seen.hidden_states[index]))[:, 1:]
        of_patch = model.base_model.multi_modal_projector(hidden).flatten(0, 1)
        number = int(tokens.valid[row].sum())
        distance = torch.cdist(tokens.features[row, :number], of_patch, compute_mode="donot_use_mm_for_euclid_dist")
        patch = distance.argmin(1)
        assert distance.amin(1).max() < 1e-3
        assert len(set(patch.tolist())) == number
        attention = seen.attentions[index][:, :, 0, 1:].transpose(0, 1).flatten(1)
        torch.testing.assert_close(tokens.signals["vision_hidden"][row, :number], hidden.flatten(0, 1)[patch])
        torch.testing.assert_close(tokens.signals["keys"][row, :number], keys.flatten(0, 1)[patch])
        torch.testing.assert_close(tokens.signals["cls_attention"][row, :, :number], attention[:, patch])


def test_a_tile_is_a_row(model, processor):
    """Rows of the scope ``tile`` hold the patches of one tile in raster order."""
    inputs = FAMILY.ask(processor, 1)
    with torch.no_grad():
        tokens = session_for(model, processor).visual_tokens(inputs, frozenset({TowerStates()}))
        seen = model.base_model.vision_tower(inputs["pixel_values"][0], output_hidden_states=True)
    assert tokens.grid == (5, 5)
    torch.testing.assert_close(tokens.signals["vision_hidden"], seen.hidden_states[-2][:, 1:])


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_beam_search(built, rows):
    check_beams(FAMILY, *built, FAMILY.ask(built[1], *rows), Project(positions="repacked"), keep_tokens=20)


def test_a_second_turn(model, processor):
    check_second_turn(model, processor, FAMILY.ask(processor, 2, 1), keep_tokens=20)


class Free(type(FAMILY)):
    """Newline tokens may leave."""

    def fixed(self, model, inputs):
        return [[] for _ in inputs["input_ids"]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pruner", [Project(), Within(layers=(1, 3))], ids=["before", "inside"])
def test_newlines_leave_if_the_scope_says_so(attention, pruner):
    built = FAMILY.build(attention)
    inputs = FAMILY.ask(built[1], 2, 1)
    check_identity(*built, inputs, pruner, "all")
    trace = check_masking(Free(), *built, inputs, pruner, "all", keep_tokens=20)
    assert trace.counts == [(200 + 10 + 5, 40), (55 + 10, 20)]


@torch.no_grad()
def test_signals_of_newlines_are_zero(model, processor):
    inputs = FAMILY.ask(processor, 1)
    tokens = session_for(model, processor, scope="all").visual_tokens(inputs, VISION)
    newline = (tokens.features == model.base_model.image_newline).all(-1)
    assert newline.sum() == 10
    assert not tokens.signals["vision_hidden"][newline].any()
    assert tokens.signals["vision_hidden"][~newline].any(-1).all()


# The papers' protocol


@pytest.fixture
def prepared(model, processor):
    samples = [
        Sample.of(picture(i, *size), "is there a star ?", "yes", id=str(i))
        for i, size in enumerate([(80, 80), (80, 24), (30, 90)])
    ]
    return session_for(model, processor, scope="papers").prepare(samples)


def test_papers_pad_images_to_the_canvas(processor, prepared):
    """The whole image is the processor's; the tiles are of the image in the middle of a black square."""
    image = picture(1, 80, 24)
    square = Image.new("RGB", (80, 80))
    square.paste(image, (28, 0))
    tiles, whole = (processor.image_processor([x], return_tensors="pt").pixel_values[0] for x in (square, image))
    assert torch.equal(prepared.inputs["pixel_values"][1], torch.cat([whole[:1], tiles[1:]]))


@torch.no_grad()
def stitched(model, pixels):
    """(125, D) visual tokens of each image by hand: the whole image, then the four tiles line by line."""
    hidden = model.base_model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    x = model.base_model.multi_modal_projector(hidden).view(5, 5, 5, -1)
    lines = [torch.cat([x[left][line], x[left + 1][line]]) for left in (1, 3) for line in range(5)]
    return torch.cat([x[0].flatten(0, 1), *lines])


@torch.no_grad()
def test_papers_see_five_tiles_without_newlines(model, processor, prepared):
    adapter, inputs = adapter_for(model, processor, scope="papers"), prepared.inputs
    assert (inputs["input_ids"] == model.config.image_token_id).sum(1).tolist() == [125] * 3
    x = model.get_input_embeddings()(inputs["input_ids"])
    x[inputs["input_ids"] == model.config.image_token_id] = torch.cat(
        [stitched(model, pixels) for pixels in inputs["pixel_values"]]
    )
    wanted = model.generate(inputs_embeds=x, attention_mask=inputs["attention_mask"], max_new_tokens=STEPS)
    whole = Session(adapter).prune_inputs(inputs, NoPruning())
    out = model.generate(**whole.inputs, max_new_tokens=STEPS)
    assert out[:, inputs["input_ids"].shape[1] :].tolist() == wanted.tolist()
    tokens = Session(adapter).visual_tokens(inputs, VISION)
    assert (len(tokens.features), tokens.num_tokens, tokens.grid) == (15, 25, (5, 5))
    tile = session_for(model, processor).visual_tokens(FAMILY.ask(processor, 1), VISION)  # the first image is the same
    for signal in VISION:
        torch.testing.assert_close(tokens.signals[signal][:5], tile.signals[signal])


@torch.no_grad()
def test_papers_select_in_each_tile(model, processor, prepared):
    inputs = prepared.inputs
    with tp.prune(model, processor, Project(positions="repacked"), scope="papers", keep_tokens=20) as trace:
        out = model.generate(**inputs, max_new_tokens=STEPS)
    direction = torch.randn(64, generator=torch.Generator().manual_seed(3))
    rows = []
    for row, pixels in enumerate(inputs["pixel_values"]):
        features = stitched(model, pixels)
        places = [list(range(25))] + [
            [25 + 10 * (5 * y + line) + 5 * x + i for line in range(5) for i in range(5)]
            for y in range(2)
            for x in range(2)
        ]
        keep = sorted(n for tile in places for n in sorted(tile, key=lambda n: -float(features[n] @ direction))[:4])
        assert trace.stages[0].keep[row] == keep
        rows.append((features, keep))
    assert trace.counts == [(125, 20)] * 3
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    visual = inputs["input_ids"] == model.config.image_token_id
    shorter = []
    for row, (features, keep) in enumerate(rows):
        embeds[row][visual[row]] = features
        stay = ~visual[row]
        stay[visual[row].nonzero()[keep, 0]] = True
        shorter.append(embeds[row][stay])
    wanted = model.generate(
        inputs_embeds=torch.stack(shorter),
        attention_mask=torch.ones(3, len(shorter[0]), dtype=torch.long),
        max_new_tokens=STEPS,
    )
    assert out[:, inputs["input_ids"].shape[1] :].tolist() == wanted.tolist()


def test_papers_need_inputs_of_their_own(model, processor, prepared):
    adapter = adapter_for(model, processor, scope="papers")
    with pytest.raises(ModelError, match="takes images of 80 x 80 pixels in 5 tiles, and prompts without newline"):
        Session(adapter).encode(FAMILY.ask(processor, 1))
    with pytest.raises(ModelError, match=r"make them with Session\.prepare"):
        Session(adapter).encode({**prepared.inputs, "image_sizes": torch.tensor([[80, 24]] * 3)})


# What cannot be


def test_inputs_that_do_not_fit(model, processor):
    adapter, inputs = adapter_for(model, processor), FAMILY.ask(processor, 1)
    with pytest.raises(ModelError, match=r"must be \(images, tiles, 3, 40, 40\).*got \(5, 3, 40, 40\)"):
        Session(adapter).encode({**inputs, "pixel_values": inputs["pixel_values"][0]})
    with pytest.raises(ModelError, match="no image_sizes"):
        Session(adapter).encode({name: value for name, value in inputs.items() if name != "image_sizes"})
    with pytest.raises(ModelError, match=r"placeholders \(row by row\), but the 1 given images"):
        Session(adapter).encode({**inputs, "image_sizes": torch.tensor([[40, 80]])})
    with pytest.raises(ModelError, match="scope 'tiles' is not one of LlavaNextAdapter; did you mean"):
        adapter_for(model, processor, scope="tiles")
