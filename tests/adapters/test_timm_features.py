import dataclasses
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny import IMAGE_SIZE, ask, randomise, shared_llava, tiny_processor

import tokenprune as tp
from tokenprune.adapters.known import adapter_for
from tokenprune.adapters.timm_features import TimmEncoder, _picture, load_encoder
from tokenprune.errors import ModelError
from tokenprune.pruners.base import ScorePruner
from tokenprune.types import Signal

NAME = "timm:vit_tiny_patch16_224"
build = timm.create_model  # the real one


def tiny_encoder(size=48, patch=4):
    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": size, "patch_size": patch, "num_classes": 0}
    overlay = {"input_size": (3, size, size)}
    return randomise(build("vit_tiny_patch16_224", pretrained=False, pretrained_cfg_overlay=overlay, **sizes), seed=3)


def correlation(x, y):
    return float(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1])


@pytest.fixture
def llava(monkeypatch):
    """A LLaVA for which timm would load a tiny encoder instead of real weights."""
    asked = []

    def create(name, **options):
        asked.append((name, options))
        return tiny_encoder()

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr("tokenprune.adapters.timm_features._LOADED", {})
    model, processor = shared_llava("sdpa")
    return model, processor, asked


def test_the_picture_comes_back_out_of_the_pixels():
    image = np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    processor = tiny_processor().image_processor
    pixels = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
    assert pixels.min() < -0.5
    expected = torch.from_numpy(image).permute(2, 0, 1) / 255
    torch.testing.assert_close(_picture(pixels, processor), expected, atol=1e-5, rtol=0)


def test_patches_are_those_of_the_model_on_its_own_normalisation():
    model = tiny_encoder(size=40, patch=8)
    pictures = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = TimmEncoder(model).patches(pictures)
        own = model.forward_features((pictures - 0.5) / 0.5)[:, 1:]
    assert timm.data.resolve_model_data_config(model)["mean"] == (0.5, 0.5, 0.5)
    torch.testing.assert_close(ours.flatten(2).mT, own, atol=1e-4, rtol=1e-4)
    flat = torch.full((1, 3, 90, 60), 0.25)  # another size and shape: resized as a whole
    with torch.no_grad():
        expected = TimmEncoder(model).patches(torch.full((1, 3, 40, 40), 0.25))
        torch.testing.assert_close(TimmEncoder(model).patches(flat), expected, atol=1e-4, rtol=1e-4)


def test_features_lie_where_the_tokens_do(llava):
    """With the picture itself for features, each token gets what its place in the picture shows."""
    model, processor, _ = llava
    adapter, inputs = adapter_for(model, processor), ask(processor, 1, 2)
    encoded = adapter.encode(inputs)
    encoder = TimmEncoder(tiny_encoder())
    encoder.patches = lambda pictures: pictures
    found = encoder.features(encoded, processor.image_processor)
    assert found.shape == (75, 3)
    for index, pixels in enumerate(inputs["pixel_values"]):
        squares = torch.nn.functional.avg_pool2d(_picture(pixels, processor.image_processor), 8)
        near = found[25 * index : 25 * index + 25].mT.view(3, 5, 5)
        right, *wrong = (correlation(x, squares) for x in (near, near.mT, near.flip(1), near.flip(2)))
        assert right > 0.85
        assert max(wrong) < 0.5


@pytest.mark.parametrize(("name", "options"), [("divprune", {}), ("cdpruner", {"conditioning": "none"})])
def test_pruners_choose_in_the_encoder_s_space(llava, name, options):
    model, processor, asked = llava
    inputs = ask(processor, 1, 2)
    with tp.prune(model, processor, name, features=NAME, keep_tokens=8, **options) as trace:
        model.generate(**inputs, max_new_tokens=1)
        together = trace.keep
        model.generate(**ask(processor, 1), max_new_tokens=1)
        alone = trace.keep
    assert asked == [("vit_tiny_patch16_224", {"pretrained": True, "num_classes": 0})]  # once
    adapter = adapter_for(model, processor)
    features = load_encoder(model, NAME).features(adapter.encode(inputs), processor.image_processor)
    expected = tp.create_pruner(name, **options).select(tp.VisualTokens(features.view(3, 25, -1)), 8)
    assert torch.equal(together, expected.keep)
    assert torch.equal(alone, together[:1])
    with tp.prune(model, processor, name, keep_tokens=8, **options) as trace:
        model.generate(**inputs, max_new_tokens=1)
    assert not torch.equal(trace.keep, together)


def test_signals_of_the_model_and_of_the_encoder_together(llava):
    seen = []

    class Spy(ScorePruner):
        requires = frozenset({Signal.ENCODER_FEATURES, Signal.KEYS})
        features = NAME

        def score(self, tokens):
            seen.append({name: tuple(value.shape) for name, value in tokens.signals.items()})
            return tokens.signal(Signal.KEYS).norm(dim=-1)

    model, processor, _ = llava
    with tp.prune(model, processor, Spy(), keep_tokens=8):
        model.generate(**ask(processor, 2), max_new_tokens=1)
    assert seen == [{"keys": (2, 25, 32), "encoder_features": (2, 25, 24)}]


def test_rows_without_a_grid_and_pixels_that_are_no_image(llava, monkeypatch):
    model, processor, _ = llava
    adapter, inputs = adapter_for(model, processor), ask(processor, 1)
    pruner, budget = tp.create_pruner("divprune", features=NAME), tp.Budget(keep_tokens=8)
    with monkeypatch.context() as patch:
        patch.setattr(type(adapter), "grid", lambda self: None)
        with pytest.raises(ModelError, match=r"one row in raster order .* with no grid"):
            adapter.prune_inputs(inputs, pruner, budget)
    encoded = adapter.encode(inputs)
    for shape in ((3, 3, 40, 40), (3, 588), (1, 40, 40)):  # tiles, packed patches, grey
        other = dataclasses.replace(encoded, pixels=(torch.zeros(shape),))
        with pytest.raises(ModelError, match=rf"pixels {re.escape(str(shape))} and 1 rows"):
            adapter.prune_inputs(inputs, pruner, budget, encoded=other)
    halves = dataclasses.replace(encoded.layout, items=(0, 0), units=encoded.layout.units * 2, grids=((5, 5),) * 2)
    with pytest.raises(ModelError, match="and 2 rows"):
        load_encoder(model, NAME).features(dataclasses.replace(encoded, layout=halves), processor.image_processor)


def test_models_that_timm_does_not_have(monkeypatch):
    model, processor = shared_llava("sdpa")
    with pytest.raises(ModelError, match=r"unknown timm model 'vit_small_dinov2' in features; near names: .*dinov2"):  # noqa: SIM117
        with tp.prune(model, processor, "divprune", features="timm:vit_small_dinov2", keep_tokens=8):
            pass

    def offline(*args, **kwargs):
        raise OSError("no network\nat all")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ModelError, match=r"'vit_tiny_patch16_224' cannot be loaded \(no network\)"):
        load_encoder(model, NAME)
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: torch.nn.Linear(1, 1))
    with pytest.raises(ModelError, match="gives no features of patches"):
        load_encoder(model, NAME)
