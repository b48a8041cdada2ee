import copy

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.flop_counter import FlopCounterMode

import tokenprune as tp
from tokenprune.core.errors import ModelError
from tokenprune.core.sample import Sample
from tokenprune.core.signals import Encoder, TowerKeys
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.providers.encoder import features_of
from tokenprune.engine.providers.encoding import Encoding
from tokenprune.engine.session import Session
from tokenprune.pruners.base import ScorePruner
from tokenprune.testing.families import families
from tokenprune.testing.families.llava import ask, shared_llava, tiny_processor
from tokenprune.testing.families.parts import randomise
from tokenprune.testing.pictures import IMAGE_SIZE
from tokenprune.towers.timm_features import TimmEncoder, denormalised, encoder_size, load_encoder

NAME = "timm:vit_tiny_patch16_224"
build = timm.create_model  # the real one


def tiny_encoder(size=48, patch=4):
    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": size, "patch_size": patch, "num_classes": 0}
    overlay = {"input_size": (3, size, size)}
    return randomise(build("vit_tiny_patch16_224", pretrained=False, pretrained_cfg_overlay=overlay, **sizes), seed=3)


def correlation(x, y):
    return float(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1])


def attention_flops(model, patches):
    """Of one picture, which the counter does not see in the kernel that a CPU takes."""
    tokens = patches + model.num_prefix_tokens
    return len(model.blocks) * 4 * tokens**2 * model.embed_dim


@pytest.fixture
def llava(monkeypatch):
    """A LLaVA for which timm would load a tiny encoder instead of real weights."""
    asked = []

    def create(name, **options):
        asked.append((name, options))
        return tiny_encoder()

    monkeypatch.setattr(timm, "create_model", create)
    monkeypatch.setattr("tokenprune.towers.timm_features._LOADED", {})
    model, processor = shared_llava("sdpa")
    return model, processor, asked


def test_the_picture_comes_back_out_of_the_pixels():
    image = np.random.default_rng(0).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    processor = tiny_processor().image_processor
    pixels = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
    assert pixels.min() < -0.5
    expected = torch.from_numpy(image).permute(2, 0, 1) / 255
    torch.testing.assert_close(denormalised(pixels, processor), expected, atol=1e-5, rtol=0)


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
    encoded = Session(adapter).encode(inputs)
    encoder = TimmEncoder(tiny_encoder())
    encoder.patches = lambda pictures: pictures
    found = features_of(encoder, Encoding(adapter, inputs, encoded))
    assert found.shape == (75, 3)
    for index, pixels in enumerate(inputs["pixel_values"]):
        squares = torch.nn.functional.avg_pool2d(denormalised(pixels, processor.image_processor), 8)
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
    features = features_of(load_encoder(model, NAME), Encoding(adapter, inputs, Session(adapter).encode(inputs)))
    expected = tp.create_pruner(name, **options).select(tp.VisualTokens(features.view(3, 25, -1)), 8)
    assert torch.equal(together, expected.keep)
    assert torch.equal(alone, together[:1])
    with tp.prune(model, processor, name, keep_tokens=8, **options) as trace:
        model.generate(**inputs, max_new_tokens=1)
    assert not torch.equal(trace.keep, together)


def test_signals_of_the_model_and_of_the_encoder_together(llava):
    seen = []

    class Spy(ScorePruner):
        requires = frozenset({Encoder(NAME), TowerKeys()})

        def score(self, tokens):
            seen.append({name: tuple(value.shape) for name, value in tokens.signals.items()})
            return tokens.signal(TowerKeys()).norm(dim=-1)

    model, processor, _ = llava
    with tp.prune(model, processor, Spy(), keep_tokens=8):
        model.generate(**ask(processor, 2), max_new_tokens=1)
    assert seen == [{str(TowerKeys()): (2, 25, 32), str(Encoder(NAME)): (2, 25, 24)}]


# What each token gets, where the picture is its own map: red is how far right a place is, green how far down.

WIDE, HIGH, SQUARE = (40, 80), (80, 40), (80, 80)


def ramp(height, width, blue=0.0):
    """(height, width, 3) uint8; places are told as parts of the width, the height, and ``blue``."""
    x = np.broadcast_to((np.arange(width) + 0.5) / width, (height, width))
    y = np.broadcast_to(((np.arange(height) + 0.5) / height)[:, None], (height, width))
    return np.stack([255 * x, 255 * y, np.full((height, width), 255 * blue)], 2).round().astype(np.uint8)


def lattice(rows, columns, box=(0, 0, 1, 1)):
    """The middles (x, y) of a lattice over a part (left, top, right, bottom) of the picture, in raster order."""
    left, top, right, bottom = box
    return [
        (left + (right - left) * (x + 0.5) / columns, top + (bottom - top) * (y + 0.5) / rows)
        for y in range(rows)
        for x in range(columns)
    ]


def tiles(down, across, side):
    """Tiles of side x side places, tile after tile."""
    boxes = [(x / across, y / down, (x + 1) / across, (y + 1) / down) for y in range(down) for x in range(across)]
    return [place for box in boxes for place in lattice(side, side, box)]


def lines(rows, columns, end=(0, 0)):
    """A lattice of which each line ends with a newline token."""
    places = lattice(rows, columns)
    return [place for row in range(rows) for place in [*places[row * columns : (row + 1) * columns], end]]


# Family: the places of the tokens of a picture (height, width).
PLACES = {
    "llava": {SQUARE: lattice(5, 5)},
    "gemma3": {SQUARE: lattice(3, 3), WIDE: lattice(3, 3)},
    "paligemma": {SQUARE: lattice(3, 3), WIDE: lattice(3, 3)},
    "mistral3": {(96, 96): lattice(6, 6), (48, 96): lattice(3, 6), (64, 32): lattice(4, 2)},
    "qwen2_vl": {(40, 40): lattice(5, 5), (24, 48): lattice(3, 6)},
    "qwen2_5_vl": {(40, 40): lattice(5, 5), (24, 48): lattice(3, 6), (56, 32): lattice(7, 4)},
    "qwen3_vl": {(40, 40): lattice(5, 5), (24, 48): lattice(3, 6)},
    "internvl": {
        (40, 40): lattice(5, 5),
        WIDE: tiles(1, 2, 5) + lattice(5, 5),
        (80, 24): tiles(3, 1, 5) + lattice(5, 5),
        (70, 70): tiles(2, 2, 5) + lattice(5, 5),
    },
    "idefics3": {(60, 60): tiles(4, 4, 3) + lattice(3, 3), (48, 96): tiles(2, 4, 3) + lattice(3, 3)},
    "smolvlm": {(60, 60): tiles(4, 4, 3) + lattice(3, 3), (96, 48): tiles(4, 2, 3) + lattice(3, 3)},
    "llava_next": {
        SQUARE: lattice(5, 5) + lines(10, 10),
        WIDE: lattice(5, 5) + lines(5, 10),
        (80, 24): lattice(5, 5) + lines(10, 3),  # padding is taken off
    },
    "llava_next_video_images": {SQUARE: lattice(4, 4) + lines(8, 8), WIDE: lattice(4, 4) + lines(4, 8)},
    "llava_onevision": {
        SQUARE: lattice(5, 5) + lines(7, 7),  # so many tokens are made fewer, across the tiles' edges
        HIGH: lattice(5, 5) + lines(10, 5),
        (80, 24): lattice(5, 5) + lines(10, 3),
    },
}


PIXELS = {"gemma3": 16, "paligemma": 16, "mistral3": 16, "idefics3": 16, "smolvlm": 16, "llava_next_video_images": 10}


def seen(adapter, inputs, pixels=8):
    """(T, 3) of an encoder that gives the mean color of each square of so many pixels."""
    encoder = TimmEncoder(tiny_encoder())
    encoder.patches = lambda x: adaptive_avg_pool2d(x, (round(x.shape[2] / pixels), round(x.shape[3] / pixels)))
    return features_of(encoder, Encoding(adapter, inputs, Session(adapter).encode(inputs)))


def check_places(found, places, atol=0.03):
    assert found.shape == (len(places), 3)
    torch.testing.assert_close(found[:, :2], torch.tensor(places, dtype=torch.float32), atol=atol, rtol=0)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # by the processor of PaliGemma
@pytest.mark.parametrize("name", PLACES)
def test_each_token_gets_what_its_place_shows(name):
    """Whatever the scope, and the picture's size and place in the batch."""
    model, processor = families()[name].build("sdpa")
    samples = [Sample.of(Image.fromarray(ramp(*size)), "where ?", id=str(size)) for size in PLACES[name]]
    places = [place for each in PLACES[name].values() for place in each]
    for scope in {*type(adapter_for(model, processor)).scopes} - {"papers"}:
        adapter = adapter_for(model, processor, scope=scope)
        check_places(seen(adapter, Session(adapter).prepare(samples).inputs, PIXELS.get(name, 8)), places)


def test_the_papers_protocol_has_no_newlines():
    adapter = adapter_for(*families()["llava_next"].build("sdpa"), scope="papers")
    inputs = Session(adapter).prepare([Sample.of(Image.fromarray(ramp(50, 50)), "where ?")]).inputs
    check_places(seen(adapter, inputs), lattice(5, 5) + lattice(10, 10))


def test_no_family_is_left_out():
    videos = {"llava_next_video", "llava_onevision_video"}
    assert set(families()) - videos == set(PLACES)


BLUES = [0.1, 0.3, 0.5, 0.7, 0.2, 0.9]  # of the pictures of a video


def film(frames, height, width):
    return np.stack([ramp(height, width, blue) for blue in BLUES[:frames]])


@pytest.mark.parametrize(
    ("name", "side", "pixels", "image"),
    [("llava_next_video", 2, 20, lattice(4, 4)), ("llava_onevision_video", 3, 40 / 3, lattice(5, 5))],
)
def test_frames_that_the_tower_sees_one_by_one(monkeypatch, name, side, pixels, image):
    """An image, then a video in each row; the last token of OneVision's is a newline."""
    monkeypatch.setattr(
        "tokenprune.testing.families.tiles.clip", lambda seed: torch.from_numpy(film(3, 50, 50)).permute(0, 3, 1, 2)
    )
    monkeypatch.setattr(
        "tokenprune.testing.families.tiles.picture", lambda seed, height, width: Image.fromarray(ramp(height, width))
    )
    model, processor = families()[name].build("sdpa")
    inputs = families()[name].ask(processor, 2, sizes=[(40, 40)])
    for scope in type(adapter_for(model, processor)).scopes:
        found = seen(adapter_for(model, processor, scope=scope), inputs, pixels)
        newline = name == "llava_onevision_video"
        end = len(found) - newline
        video = found[end - 3 * side**2 : end]
        check_places(video, 3 * lattice(side, side))
        torch.testing.assert_close(video[:, 2].view(3, -1).mean(1), torch.tensor(BLUES[:3]), atol=0.01, rtol=0)
        check_places(found[: len(image)], image, atol=0.13)  # the encoder's squares are larger than its places
        assert not newline or not found[-1].any()


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_frames_that_are_made_of_two_pictures(monkeypatch, name):
    monkeypatch.setattr(
        "tokenprune.testing.families.qwen_vl.pixels",
        lambda seed, *shape: film(*shape) if len(shape) == 3 else ramp(*shape),
    )
    model, processor = families()[name].build("sdpa")
    inputs = families()[name].ask(processor, 1, 1, videos=(1, 0))  # an image and a video, then an image
    for scope in type(adapter_for(model, processor)).scopes:
        found = seen(adapter_for(model, processor, scope=scope), inputs)
        check_places(found, lattice(5, 5) + 3 * lattice(5, 5) + lattice(3, 6))
        blue = found[25:100, 2].view(3, -1).mean(1)
        pairs = torch.tensor(BLUES).view(3, 2).mean(1)
        torch.testing.assert_close(blue, pairs, atol=0.01, rtol=0)
        assert found[:25, 2].abs().max() < 0.01


def test_each_modality_has_its_own_normalisation(monkeypatch):
    monkeypatch.setattr(
        "tokenprune.testing.families.qwen_vl.pixels",
        lambda seed, *shape: film(*shape) if len(shape) == 3 else ramp(*shape),
    )
    model, processor = families()["qwen2_vl"].build("sdpa")
    processor = copy.deepcopy(processor)
    processor.video_processor.image_mean, processor.video_processor.image_std = [0.1, 0.2, 0.3], [0.9, 0.8, 0.7]
    found = seen(adapter_for(model, processor), families()["qwen2_vl"].ask(processor, 1, videos=(1,)))
    check_places(found, 4 * lattice(5, 5))


@pytest.mark.parametrize("name", families())
def test_every_family_is_pruned_in_the_encoder_s_space(llava, name):
    """What stays is what the pruner picks among the encoder's features of each row."""
    family = families()[name]
    model, processor = family.build("sdpa")
    adapter, inputs, pruner = adapter_for(model, processor), family.ask(processor, 1, 2), tp.create_pruner("divprune")
    with tp.prune(model, processor, "divprune", features=NAME, keep_tokens=8) as trace:
        model.generate(**inputs, max_new_tokens=1)
    assert trace.counts == family.counts(model, inputs, 8)
    encoded = Session(adapter).encode(inputs)
    features = features_of(load_encoder(model, NAME), Encoding(adapter, inputs, encoded))
    kept = torch.zeros(len(features), dtype=torch.bool)
    quotas = encoded.layout.divided(
        [row[0] for row in encoded.layout.counts(pruner, adapter.spec, tp.Budget(keep_tokens=8))]
    )
    for unit, quota in zip(encoded.layout.units, quotas, strict=True):
        if quota:
            kept[unit[pruner.select(tp.VisualTokens(features[unit][None]), quota).keep[0]]] = True
    rows = family.placeholder(model, inputs["input_ids"]).nonzero()[:, 0]
    for row, keep in enumerate(trace.stages[0].keep):
        assert encoded.layout.numbers[kept & (rows == row)].tolist() == keep


def test_models_whose_tokens_have_no_known_place(llava, monkeypatch):
    from tiny_vipllava import vipllava

    model, processor, _ = llava
    adapter, inputs = adapter_for(model, processor), ask(processor, 1)
    pruner, budget = tp.create_pruner("divprune", features=NAME), tp.Budget(keep_tokens=8)
    with monkeypatch.context() as patch:
        patch.setattr(type(adapter), "grid", lambda self: None)
        with pytest.raises(ModelError, match=r"need visual tokens of which it is known where in the picture they are"):
            Session(adapter).prune_inputs(inputs, pruner, budget)
    unknown = adapter_for(*vipllava())
    with pytest.raises(ModelError, match=r"this model's are not, as its adapter does not say it"):
        Session(unknown).prune_inputs(inputs, pruner, budget)


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


@pytest.mark.parametrize("name", ["llava", "llava_next", "internvl", "qwen2_vl", "gemma3"])
def test_what_the_features_cost_is_what_their_encoder_computes(monkeypatch, name):
    """The closed form knows how many pictures an image is: its tiles, and the whole image."""
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: tiny_encoder())
    family, features = families()[name], f"timm:vit_tiny_patch16_224.{name}"  # asked for once, so that none is cached
    model, processor = family.build("sdpa")
    adapter = adapter_for(model, processor)
    inputs = family.ask(processor, 1, **family.nominal)
    encoded, encoder = Session(adapter).encode(inputs), TimmEncoder(tiny_encoder())
    with FlopCounterMode(display=False) as counter:
        features_of(encoder, Encoding(adapter, inputs, encoded))
    pictures = sum(len(shown.pixels) for shown in encoded.pictures)
    counted = counter.get_total_flops() + pictures * attention_flops(encoder.model, 144)
    size = encoder_size(features)
    assert (size.channels, pictures * size.flops) == (24, counted)
    if len(encoded.features) == adapter.spec.visual_tokens:
        assert pictures == adapter.spec.vision_tiles


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("vit_small_dinov2", "unknown timm model 'vit_small_dinov2' in features; near names:"),
        ("hub:timm/vit", "unknown timm model 'hub:timm/vit' in features; before a colon may be hf-hub or local-dir"),
        ("hf-hub:", "unknown timm model 'hf-hub:' in features; before a colon may be"),
        ("local-dir:/no/such", "timm model 'local-dir:/no/such' in features: folder '/no/such' does not exist"),
        ("hiera_tiny_224", r"features of timm model 'hiera_tiny_224' cannot be counted \("),
    ],
)
def test_what_an_unknown_encoder_costs_is_said_in_a_sentence(name, words):
    with pytest.raises(ModelError, match=words):
        encoder_size(f"timm:{name}")
