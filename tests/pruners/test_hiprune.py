import pytest
import torch
from golden_data import load

import tokenprune as tp
from tokenprune import VisualTokens, create_pruner
from tokenprune.core.errors import ConfigError, SelectionError
from tokenprune.core.signals import TowerAttention
from tokenprune.engine.loading import session_for
from tokenprune.pruners.hiprune import _from_all
from tokenprune.testing.families.llava import ask, tiny_llava, tiny_processor

OFFICIAL = create_pruner("hiprune", neighbours="sequence")


def tokens_of(objects, deep, grid):
    """Tokens (B, N) that get so much attention from CLS and from the patches alike."""
    signals = {}
    for layer, attention in ((1 / 3, objects), (None, deep)):
        signals |= {str(TowerAttention(query, layer)): attention[:, None] for query in ("cls", "patches")}
    return VisualTokens(torch.zeros(*objects.shape, 2), signals, grid=grid)


def golden(name):
    case = load(name)
    maps = (case[f"attn_{layer}_layer"].mean((1, 2))[:, 1:] for layer in ("object", "deep"))
    return case, tokens_of(*maps, (24, 24))


def literal(objects, deep, k, alpha, grid):
    """One row, in float64 and in a loop over the grid."""
    (height, width), order = grid, sorted(range(len(objects)), key=lambda i: (-objects[i], i))
    kept = set()
    for anchor in order[: min(round(k * alpha / 5), k // 5)]:
        y, x = divmod(anchor, width)
        for down, right in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)):
            if 0 <= y + down < height and 0 <= x + right < width:
                kept.add((y + down) * width + x + right)
    rest = sorted(set(range(len(deep))) - kept, key=lambda i: (-deep[i], i))
    return sorted(kept | set(rest[: k - len(kept)]))


@pytest.mark.parametrize("k", [192, 128, 64])
def test_kept_tokens_are_those_of_the_official_code(k):
    case, tokens = golden("hiprune_t192")
    kept = case["kept"] if k == 192 else case[f"kept_T{k}"]
    assert torch.equal(OFFICIAL.select(tokens, k).keep, kept.long())


def test_five_crops_keep_what_they_keep_in_the_official_code():
    case, tokens = golden("hiprune_next_b5_t320")
    keep = OFFICIAL.select(tokens, 64).keep
    assert torch.equal(keep, case["kept"].long())
    stitched = []
    for crop in range(1, 5):
        for patch in keep[crop].tolist():
            row, column = divmod(patch, 24)
            stitched.append((row + 24 * ((crop - 1) // 2), column + 24 * ((crop - 1) % 2), crop * 576 + patch))
    assert keep[0].tolist() + [where for *_, where in sorted(stitched)] == case["order_in_sequence"].tolist()


def test_of_qwen_no_token_is_drawn_twice():
    """The official code draws three of 125 twice and keeps 122; these are among ours."""
    case = load("hiprune_qwen_r0p223")
    tokens = tokens_of(case["attn_object_layer"][None], case["attn_deep_layer"][None], (20, 28))
    keep = OFFICIAL.select(tokens, 125).keep
    assert keep.shape == (1, 125)
    assert len(case["kept"]) == 122
    assert set(case["kept"].tolist()) < set(keep[0].tolist())


@pytest.mark.parametrize("k", [1, 4, 7, 30, 47])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.6, 1.0])
def test_literal_transcription(k, alpha):
    generator = torch.Generator().manual_seed(k)
    objects, deep = torch.rand(2, 48, generator=generator), torch.rand(2, 48, generator=generator)
    keep = create_pruner("hiprune", alpha=alpha).select(tokens_of(objects, deep, (6, 8)), k).keep
    assert keep.tolist() == [literal(objects[i].tolist(), deep[i].tolist(), k, alpha, (6, 8)) for i in range(2)]


def test_neighbours_by_hand():
    # 3 x 4; the anchor is the end of the first line. In the sequence, 4 is next to it, and -1 is the first token.
    objects, deep = torch.zeros(1, 12), torch.arange(12.0)[None]
    objects[0, 3] = 1
    tokens = tokens_of(objects, deep, (3, 4))
    assert create_pruner("hiprune", alpha=1.0).select(tokens, 5).keep.tolist() == [[2, 3, 7, 10, 11]]
    official = create_pruner("hiprune", alpha=1.0, neighbours="sequence")
    assert official.select(tokens, 5).keep.tolist() == [[0, 2, 3, 4, 7]]


def test_attention_of_all_tokens_is_the_mean_of_the_eager_map():
    model, processor = tiny_llava("eager"), tiny_processor()
    inputs = ask(processor, 1)
    pruner = create_pruner("hiprune", object_layer=1)
    seen = []

    class Spy(type(pruner)):
        def _choose(self, tokens, k):
            seen.append([_from_all(tokens, layer) for layer in (1, None)])
            return super()._choose(tokens, k)

    session_for(model, processor).prune_inputs(inputs, Spy(object_layer=1), tp.Budget(keep_tokens=9))
    maps = model.base_model.vision_tower(inputs["pixel_values"], output_attentions=True).attentions
    read = model.config.vision_feature_layer
    for ours, theirs in zip(seen[0], (maps[1], maps[read]), strict=True):
        torch.testing.assert_close(ours, theirs.mean((1, 2))[:, 1:])


def test_a_fraction_is_a_layer_of_any_tower():
    model, processor = tiny_llava("sdpa"), tiny_processor()
    depth = model.config.vision_config.num_hidden_layers
    session, inputs = session_for(model, processor), ask(processor, 1)

    def kept(layer):
        pruner = create_pruner("hiprune", object_layer=layer, alpha=1.0)
        return session.prune_inputs(inputs, pruner, tp.Budget(keep_tokens=9)).selection.keep.tolist()

    assert kept(0.49) == kept(round(0.49 * depth))
    assert kept(0.0) == kept(0) != kept(-1)
    assert kept(0.999) == kept(depth - 1) == kept(-1)


def test_without_a_grid_it_is_refused():
    tokens = tokens_of(torch.rand(1, 6), torch.rand(1, 6), None)
    with pytest.raises(SelectionError, match="hiprune needs visual tokens in a grid"):
        create_pruner("hiprune").select(tokens, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 1.5}, r"alpha.*\[0, 1\]"),
        ({"object_layer": 1.5}, r"object_layer.*\[0, 1\)"),
        ({"neighbours": "flat"}, "Allowed: grid, sequence"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        create_pruner("hiprune", **options)
