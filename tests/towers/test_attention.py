"""Attention inside vision towers is what they compute under eager attention; of Qwen's see test_qwen_vl."""

import copy

import pytest
import torch
from torch.nn.functional import interpolate

import tokenprune as tp
from tokenprune.adapters.registry import ADAPTERS
from tokenprune.core.errors import ModelError
from tokenprune.core.signals import TowerAttention, TowerKeys
from tokenprune.engine.loading import adapter_for, session_for
from tokenprune.engine.session import Session
from tokenprune.pruners.base import ScorePruner
from tokenprune.testing.families import families
from tokenprune.testing.families.llava import tiny_llava, tiny_processor, tiny_vision_config
from tokenprune.towers.attention import ROWS, mean_attention, received_in_pictures

RECEIVED = frozenset({TowerAttention("patches")})


def grid(x, height, width):
    """(tiles, patches, H) to (tiles, H, height, width)."""
    return x.mT.unflatten(-1, (height, width))


def squares(x, side):
    """Means over squares of patches: (tiles, H, height, width) to (tiles, H, tokens)."""
    return torch.nn.functional.avg_pool2d(x, side).flatten(2)


def canvas(x, rows, columns):
    """(rows * columns, H, h, w), the tiles of an image, to (H, rows * h, columns * w)."""
    return torch.cat([torch.cat(list(line), -1) for line in x.unflatten(0, (rows, columns))], -2)


# What the patches of each picture that the tower saw receive, (tiles, patches, H), to the rows of the adapter (H, n).
def as_they_are(x):
    return list(x.mT)


def gemma(x):
    return list(squares(grid(x, 6, 6), 2))


def internvl(x):
    return list(squares(grid(x, 10, 10), 2))


def mistral(x):
    """One sequence of images, 12 x 12, 6 x 12 and 12 x 4 patches, each of which asks within itself."""
    sizes = ((12, 12), (6, 12), (12, 4))
    images = [image * x.shape[1] / image.shape[1] for image in x.split([h * w for h, w in sizes], 1)]
    return [squares(grid(image, h, w), 2)[0] for image, (h, w) in zip(images, sizes, strict=True)]


def llava_next(x):
    """Of an image of 40 x 80 pixels in the scope ``image``: the whole, then both tiles side by side."""
    lines = canvas(grid(x[1:], 5, 5), 1, 2)
    return [torch.cat([x[0].mT, lines.flatten(1)], 1)]


def onevision_video(x):
    """Of three frames, 25 patches made 9 each."""
    small = interpolate(grid(x, 5, 5), (3, 3), mode="bilinear")
    return list(small.flatten(2))


MISTRAL = ((96, 96), (48, 96), (96, 32))
# Family: where its attention modules are, options of ``ask``, what becomes of its patches, and the adapter's scope.
CASES = {
    "llava": ("vision_tower.encoder.layers.2.self_attn", (1, 2), {}, as_they_are, None),
    "llava_next": ("vision_tower.encoder.layers.2.self_attn", (1,), {"sizes": [(40, 80)]}, llava_next, "image"),
    "llava_onevision": ("vision_tower.encoder.layers.2.self_attn", (1,), {"sizes": [(40, 80)]}, llava_next, "image"),
    "internvl": ("vision_tower.encoder.layer.2.attention", (1, 2), {}, internvl, None),
    "idefics3": ("vision_model.encoder.layers.2.self_attn", (1, 2), {}, gemma, None),
    "smolvlm": ("vision_model.encoder.layers.2.self_attn", (2, 1), {}, gemma, None),
    "gemma3": ("vision_tower.encoder.layers.2.self_attn", (1, 2), {}, gemma, None),
    "paligemma": ("vision_tower.encoder.layers.2.self_attn", (1, 2), {}, as_they_are, None),
    "mistral3": ("vision_tower.transformer.layers.2.attention", (1, 2), {"sizes": MISTRAL}, mistral, None),
}
WITH_CLS = {"llava", "llava_next", "internvl"}


def tower_weights(model, name, inputs):
    """(tiles, H, patches, patches): what the attention module gives when the model runs under eager attention."""
    seen, model = [], copy.deepcopy(model)
    model.set_attn_implementation("eager")
    model.base_model.get_submodule(name).register_forward_hook(lambda m, args, output: seen.append(output[1]))
    with torch.no_grad():
        model(**inputs)
    (weights,) = seen
    return weights


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CASES)
def test_received_attention_is_the_mean_of_the_tower_s_own_softmax(name, attention):
    module, rows, options, arrange, scope = CASES[name]
    family = families()[name]
    model, processor = family.build(attention)
    inputs = family.ask(processor, *rows, **options)
    weights = tower_weights(model, module, inputs)
    first = int(name in WITH_CLS)
    wanted = arrange(weights[:, :, first:, first:].mean(2).mT)
    found = session_for(model, processor, scope=scope).visual_tokens(inputs, RECEIVED).signals
    assert found.keys() == {str(TowerAttention("patches"))}
    received = found[TowerAttention("patches")]
    assert received.shape == (len(wanted), 4, max(x.shape[1] for x in wanted))
    for row, x in zip(received, wanted, strict=True):
        torch.testing.assert_close(row[:, : x.shape[1]], x, atol=1e-6, rtol=1e-4)
    assert received.std(-1).min() > 1e-4  # flat attention would hide a wrong order


def test_received_attention_of_frames():
    module, _, _, _, _ = CASES["llava_onevision"]
    family = families()["llava_onevision_video"]
    model, processor = family.build("eager")
    inputs = family.ask(processor, 2)  # a picture and a video of three frames
    inputs = {name: inputs[name] for name in ("pixel_values_videos", "input_ids", "attention_mask")}
    image = inputs["input_ids"] == model.config.image_token_id
    inputs["input_ids"] = inputs["input_ids"].masked_fill(image, model.config.text_config.pad_token_id)
    wanted = onevision_video(tower_weights(model, module, inputs).mean(2).mT)
    found = session_for(model, processor).visual_tokens(inputs, RECEIVED).signals[TowerAttention("patches")]
    torch.testing.assert_close(found, torch.stack(wanted))


def test_every_family_that_has_keys_has_received_attention():
    for name in ADAPTERS.names():
        offers = ADAPTERS.get(name).on_offer()
        assert (TowerKeys() in offers) == (TowerAttention("patches") in offers), name


def test_the_layer_is_the_one_that_the_projector_reads():
    model = tiny_llava("eager", vision_feature_layer=-1)
    inputs = families()["llava"].ask(tiny_processor(), 1)
    weights = tower_weights(model, "vision_tower.encoder.layers.3.self_attn", inputs)
    found = session_for(model, tiny_processor()).visual_tokens(inputs, RECEIVED).signals[TowerAttention("patches")]
    torch.testing.assert_close(found, weights[:, :, 1:, 1:].mean(2))


def test_a_cls_token_that_is_a_visual_token_receives_too_but_does_not_ask():
    model = tiny_llava("eager", vision=tiny_vision_config(), vision_feature_select_strategy="full")
    processor = tiny_processor()
    processor.vision_feature_select_strategy = "full"
    inputs = families()["llava"].ask(processor, 1)
    weights = tower_weights(model, "vision_tower.encoder.layers.2.self_attn", inputs)
    found = session_for(model, processor).visual_tokens(inputs, RECEIVED).signals[TowerAttention("patches")]
    torch.testing.assert_close(found, weights[:, :, 1:].mean(2))


def test_rows_are_summed_in_parts():
    """More queries than are held at once, of several pictures and of one."""
    generator = torch.Generator().manual_seed(0)
    key, query = torch.randn(2, 3, ROWS + 40, 2, 4, generator=generator)
    whole = torch.einsum("iqhd,ikhd->ihqk", query, key).mul(0.5).softmax(-1).mean(2).mT
    torch.testing.assert_close(mean_attention(key, query, 0.5), whole)
    packed = received_in_pictures(key.flatten(0, 1), query.flatten(0, 1), [ROWS + 40] * 3, 0.5)
    torch.testing.assert_close(packed, whole.flatten(0, 1))
    half = mean_attention(key.bfloat16(), query.bfloat16(), 0.5)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, atol=1e-3, rtol=0.1)


def test_memory_is_that_of_some_rows(monkeypatch):
    sizes = []
    real = torch.einsum

    def einsum(formula, *operands):
        sizes.append(real(formula, *operands).numel())
        return real(formula, *operands)

    monkeypatch.setattr(torch, "einsum", einsum)
    mean_attention(torch.zeros(2, 1000, 2, 4), torch.zeros(2, 1000, 2, 4), 1.0)
    assert max(sizes) == ROWS * 1000 * 2
    assert sum(sizes) == 2 * 1000 * 1000 * 2


class ByCLS(ScorePruner):
    requires = frozenset({TowerAttention("cls")})

    def score(self, tokens):
        return tokens.signal(TowerAttention("cls")).mean(1)


@pytest.mark.parametrize("name", sorted(set(families()) - WITH_CLS - {"llava_next_video", "llava_next_video_images"}))
def test_a_family_without_a_cls_token_names_the_stand_in(name):
    model, processor = families()[name].build("sdpa")
    message = r"signals cls_attention; .*; received_attention stands in for cls_attention"
    for pruner in (ByCLS(), tp.create_pruner("cdpruner", conditioning="cls_attention")):
        with (
            pytest.raises(ModelError, match=message),
            tp.prune(model, processor, pruner, keep_tokens=4),
        ):
            pass


def test_a_tile_of_which_a_part_is_hidden():
    model, processor = families()["idefics3"].build("sdpa")
    inputs = families()["idefics3"].ask(processor, 1)
    adapter = adapter_for(model, processor)
    mask = inputs["pixel_attention_mask"].clone()
    mask[0, 0, -8:] = 0
    with pytest.raises(ModelError, match="pixel_attention_mask hides a part of a tile"):
        Session(adapter).visual_tokens({**inputs, "pixel_attention_mask": mask}, RECEIVED)
    Session(adapter).visual_tokens({**inputs, "pixel_attention_mask": mask}, frozenset({TowerKeys()}))
