import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPVisionConfig, LlavaConfig, SiglipVisionConfig

import tokenprune as tp
from tokenprune.adapters.registry import ADAPTERS
from tokenprune.core.errors import ModelError
from tokenprune.core.signals import PairedImage
from tokenprune.core.stages import PRE_LLM
from tokenprune.core.steps import Step
from tokenprune.engine.providers.base import Facts, choose
from tokenprune.engine.providers.steps import check_steps
from tokenprune.sweeps.build import build
from tokenprune.sweeps.config import parse_config
from tokenprune.testing.families import families
from tokenprune.testing.families.llava import shared_llava, tiny_vision_config
from tokenprune.testing.towers import save_siglip, tiny_clip
from tokenprune.towers.text.base import KNOWN, TUNED, TextTower, find_source, load_text_tower


class Letters(TextTower):
    """One token a letter; a segment's embedding is the sum of its tokens' rows."""

    kind, width, context, pad = "clip", 32, 4, 0

    def __init__(self):
        self.table = F.normalize(torch.randn(128, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
        self.seen = None

    def project(self, patches):
        return patches[..., :5]

    def tokenize(self, text):
        return torch.tensor([ord(letter) for letter in text])

    def encode(self, segments):
        self.seen = segments
        return (self.table[segments] * (segments != self.pad)[..., None]).sum(1)


CLIP_TEXT = tp.create_pruner("cdpruner", conditioning="clip_text")


def test_texts_of_any_length():
    tower, texts = Letters(), ["abcd", "abcdefghij", "ab", "abcdefgh"]
    embeds = tower.embed_text(texts)
    assert embeds.shape == (4, 6, 5)  # 1, 3, 1 and 2 segments
    assert tower.seen.tolist()[1:4] == [[97, 98, 99, 100], [101, 102, 103, 104], [105, 106, 0, 0]]
    assert len(tower.seen) == 7
    patch = torch.randn(5, generator=torch.Generator().manual_seed(1))
    for row, text in zip(embeds, texts, strict=True):
        parts = [text[at : at + 4] for at in range(0, len(text), 4)]
        each = torch.stack([tower.table[tower.tokenize(part)].sum(0) for part in parts])
        together, alone = (F.cosine_similarity(patch, many, dim=-1).mean() for many in (row, each))
        torch.testing.assert_close(together, alone)


def config(vision=None, path=""):
    made = LlavaConfig(vision_config=vision or tiny_vision_config(), image_token_index=4)
    made._name_or_path = str(path)
    return made


LARGE = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
)
SIGLIP = SiglipVisionConfig(
    hidden_size=1152, num_hidden_layers=27, num_attention_heads=16, image_size=384, patch_size=14
)


def test_where_the_tower_comes_from(tmp_path):
    assert find_source(config(LARGE), None, None) == "openai/clip-vit-large-patch14-336"
    assert find_source(config(LARGE), None, "clip") == "openai/clip-vit-large-patch14-336"
    assert find_source(config(LARGE), None, "open_clip") == "open_clip:ViT-L-14-336-quickgelu@openai"
    assert find_source(config(SIGLIP), None, None) == "google/siglip-so400m-patch14-384"
    assert find_source(config(SIGLIP), None, "open_clip") == "open_clip:ViT-SO400M-14-SigLIP-384@webli"
    assert find_source(config(LARGE), "mine", "clip") == "mine"
    assert find_source(config(LARGE), "open_clip:ViT-L-14@openai", None) == "open_clip:ViT-L-14@openai"
    named = CLIPVisionConfig(**LARGE.to_dict())
    named._name_or_path = "somebody/clip"
    assert find_source(config(named), None, None) == "somebody/clip"
    (tmp_path / "clip").mkdir()
    assert find_source(config(named, tmp_path), None, None) == "somebody/clip"
    (tmp_path / "clip/config.json").touch()
    assert find_source(config(named, tmp_path), None, None) == str(tmp_path / "clip")
    assert find_source(config(LARGE, tmp_path), None, "open_clip") == "open_clip:ViT-L-14-336-quickgelu@openai"


@pytest.mark.parametrize(
    ("vision", "given", "kind", "message"),
    [
        (None, None, None, "4 layers, 32 wide, 40 pixels in patches of 8.*give text_tower="),
        (None, None, "open_clip", "give text_tower=open_clip:<model>@<weights>"),
        (LARGE, "some/folder", "open_clip", "needs text_tower to be open_clip:<model>@<weights>, got 'some/folder'"),
        (LARGE, "open_clip:ViT-L-14@openai", "clip", "needs text_tower to be a hub id or the folder"),
    ],
)
def test_no_tower(vision, given, kind, message):
    with pytest.raises(ModelError, match=message):
        find_source(config(vision), given, kind)


SIGLIPS = ("gemma3", "idefics3", "llava_onevision", "paligemma")


@pytest.mark.parametrize("kind", [None, "clip", "open_clip"])
@pytest.mark.parametrize("model_type", sorted(TUNED))
def test_a_tower_that_was_trained_further_has_none_by_its_sizes(model_type, kind, tmp_path):
    made = config(SIGLIP, tmp_path)
    made.model_type = model_type
    with pytest.raises(ModelError, match=f"type '{model_type}' trained their SigLIP further.*docs/families.md"):
        find_source(made, None, kind)
    given = "open_clip:ViT-SO400M-14-SigLIP-384@webli" if kind == "open_clip" else "google/siglip"
    assert find_source(made, given, kind) == given
    if kind != "open_clip":  # the checkpoint brings its own
        (tmp_path / "clip").mkdir()
        (tmp_path / "clip/config.json").touch()
        assert find_source(made, None, kind) == str(tmp_path / "clip")


def test_who_trained_it_further():
    paired = {name for name in ADAPTERS.names() if PairedImage() in ADAPTERS.get(name).on_offer()}
    assert paired == {"llava", "llava_next", "llava_next_video", *SIGLIPS}
    assert {kind for name in SIGLIPS for kind in ADAPTERS.get(name).model_types} == TUNED


@pytest.mark.parametrize("name", [*SIGLIPS, "qwen_vl"])
def test_by_default_a_missing_tower_gives_place_to_the_prompt(name):
    model, _ = next(iter(families(name).values())).build("sdpa")
    for text_tower in (None, "somebody/siglip"):
        facts = Facts(ADAPTERS.get(name), model.config, text_tower)
        found = {str(choose(signal, facts, inside=False)) for signal in tp.create_pruner("cdpruner").requires}
        paired = name != "qwen_vl" and text_tower is not None
        assert ("paired_image[library=clip]" in found) == paired
        assert ("prompt_embeds[question=own]" in found) != paired
        assert ("prompt_mask[question=own]" in found) != paired


@pytest.mark.parametrize("name", SIGLIPS)
def test_a_missing_tower_is_told_before_the_weights_load(name, tmp_path):
    family = next(iter(families(name).values()))
    model, processor = family.build("sdpa")
    with pytest.raises(ModelError, match="give text_tower="), tp.prune(model, processor, CLIP_TEXT, keep_tokens=4):
        pass
    model.config.save_pretrained(tmp_path)
    run = {"model": {"name": name, "path": str(tmp_path)}, "pruner": {"name": "cdpruner", "conditioning": "clip_text"}}
    run["budget"] = {"keep_tokens": 4}
    with pytest.raises(ModelError, match=r"pruner 'cdpruner conditioning=clip_text': .*give text_tower="):
        build(parse_config(run))
    run["model"]["text_tower"] = "somebody/siglip"
    assert build(parse_config(run)).model.text_tower == "somebody/siglip"


@pytest.mark.parametrize("name", ["internvl", "mistral3", "qwen_vl", "qwen3_vl"])
def test_families_without_one_say_what_works(name):
    message = "no text tower is known for its vision tower: use conditioning prompt_embedding or none"
    with pytest.raises(ModelError, match=message):
        check_steps([Step(PRE_LLM, CLIP_TEXT, "repacked")], Facts(ADAPTERS.get(name)))
    for conditioning in ("auto", "prompt_embedding", "none"):
        pruner = tp.create_pruner("cdpruner", conditioning=conditioning)
        check_steps([Step(PRE_LLM, pruner, "repacked")], Facts(ADAPTERS.get(name)))


def test_towers_of_another_kind(tmp_path):
    model, _ = shared_llava("sdpa")
    with pytest.raises(ModelError, match="is a siglip, the vision tower is a 'clip_vision_model'"):
        load_text_tower(model, save_siglip(tmp_path / "siglip"), None)
    model.config.save_pretrained(tmp_path / "llava")
    with pytest.raises(ModelError, match="is of type 'llava'; allowed: clip, siglip, siglip2"):
        load_text_tower(model, str(tmp_path / "llava"), None)
    with pytest.raises(ModelError, match=r"cannot be loaded \(.*; give another text_tower="):
        load_text_tower(model, "no/such-tower", None)


def test_known_open_clip_towers_exist():
    import open_clip

    for (*_, image, patch), (_, name) in KNOWN.items():
        model, tag = name.split("@")
        assert tag in open_clip.list_pretrained_tags_by_model(model)
        sizes = open_clip.get_model_config(model)
        assert sizes["vision_cfg"]["image_size"] == image
        assert f"-{patch}" in model
        wants = bool(open_clip.get_pretrained_cfg(model, tag).get("quick_gelu"))
        assert sizes.get("quick_gelu", False) == wants


def test_loaded_once_for_a_model(tmp_path, monkeypatch):
    from tokenprune.engine.loading import adapter_for
    from tokenprune.towers.text import clip as clip_tower

    for part in tiny_clip():
        part.save_pretrained(tmp_path)
    loads, load = [], clip_tower.load
    monkeypatch.setattr(clip_tower, "load", lambda *args: loads.append(args) or load(*args))
    first, second = (adapter_for(*shared_llava("sdpa"), text_tower=str(tmp_path)) for _ in range(2))
    assert loads == []  # only if a pruner needs it
    assert load_text_tower(first.model, str(tmp_path), "clip") is load_text_tower(second.model, str(tmp_path), None)
    assert len(loads) == 1
    with pytest.raises(ModelError, match="open_clip:<model>@<weights>"):
        load_text_tower(first.model, str(tmp_path), "open_clip")
