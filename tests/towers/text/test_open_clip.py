import copy
import json
import logging

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer

import tokenprune as tp
from tokenprune.core.errors import ModelError
from tokenprune.core.signals import PairedImage, PairedText
from tokenprune.engine.loading import session_for
from tokenprune.testing.families.llava import PATCH_SIZE, ask, shared_llava
from tokenprune.testing.families.parts import randomise
from tokenprune.testing.pictures import IMAGE_SIZE
from tokenprune.testing.surroundings import HARMLESS
from tokenprune.towers.text import clip as clip_tower
from tokenprune.towers.text import open_clip as open_clip_tower
from tokenprune.towers.text.base import load_text_tower

CPU = torch.device("cpu")
SIZES = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "layers": 4,
        "width": 32,
        "head_width": 8,
        "mlp_ratio": 2,
    },
    "text_cfg": {"context_length": 12, "width": 16, "heads": 2, "layers": 2, "mlp_ratio": 2},
}
QUESTIONS = [
    "What colour is the circle?",
    "Is there a red circle on the left, and a blue star on the right of it?",
    "Why?",
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """One CLIP twice: a folder of Hugging Face's, and a folder of open_clip's with the same weights."""
    ours, theirs = tmp_path_factory.mktemp("hf"), tmp_path_factory.mktemp("open_clip")
    simple = open_clip.tokenizer.SimpleTokenizer()
    vocabulary = dict(simple.encoder)
    merges = list(simple.bpe_ranks)
    begin, end = "<start_of_text>", "<end_of_text>"
    names = {"bos_token": begin, "eos_token": end, "pad_token": end, "unk_token": end}
    CLIPTokenizer(vocab=vocabulary, merges=merges, **names).save_pretrained(ours)
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=49406,
        eos_token_id=2,  # as in OpenAI's checkpoints: pool at the largest id
    )
    llava, _ = shared_llava("sdpa")
    config = CLIPConfig(text_config=text, vision_config=llava.config.vision_config, projection_dim=24)
    clip = randomise(CLIPModel(config), seed=1)
    clip.vision_model.load_state_dict(llava.base_model.vision_tower.state_dict())
    clip.save_pretrained(ours)
    (theirs / "open_clip_config.json").write_text(json.dumps({"model_cfg": SIZES, "preprocess_cfg": {}}))
    save_file(translated(clip.state_dict()), theirs / "open_clip_model.safetensors")
    return str(ours), str(theirs)


def translated(state):
    """Hugging Face's names of weights to open_clip's."""
    out = {
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T,
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "text_projection": state["text_projection.weight"].T,
        "logit_scale": state["logit_scale"],
    }
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    for tower, to, layers in (("vision_model", "visual.transformer", 4), ("text_model", "transformer", 2)):
        for index in range(layers):
            block, old = f"{to}.resblocks.{index}", f"{tower}.encoder.layers.{index}"
            norms |= {f"{block}.ln_1": f"{old}.layer_norm1", f"{block}.ln_2": f"{old}.layer_norm2"}
            norms |= {f"{block}.mlp.c_fc": f"{old}.mlp.fc1", f"{block}.mlp.c_proj": f"{old}.mlp.fc2"}
            norms[f"{block}.attn.out_proj"] = f"{old}.self_attn.out_proj"
            for kind in ("weight", "bias"):
                parts = [state[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                out[f"{block}.attn.in_proj_{kind}"] = torch.cat(parts)
    out |= {f"{new}.{kind}": state[f"{old}.{kind}"] for new, old in norms.items() for kind in ("weight", "bias")}
    return {name: weight.clone().contiguous() for name, weight in out.items()}


def test_both_libraries_give_the_same_embeddings(pair):
    ours, theirs = clip_tower.load(pair[0], CPU), open_clip_tower.load(pair[1], CPU)
    assert (theirs.width, theirs.context, theirs.pad) == (ours.width, ours.context, ours.pad) == (32, 12, 0)
    for question in QUESTIONS:
        assert theirs.tokenize(question).tolist() == ours.tokenize(question).tolist()
    assert len(ours.tokenize(QUESTIONS[1])) > 12  # more than one segment
    texts = [tower.embed_text(QUESTIONS) for tower in (ours, theirs)]
    assert texts[0].shape == (3, 2, 24)
    torch.testing.assert_close(*texts, atol=1e-5, rtol=0)
    hidden = torch.randn(2, 25, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.project(hidden), theirs.project(hidden), atol=1e-5, rtol=0)


@pytest.mark.parametrize("around", HARMLESS)
def test_loads_the_same_whatever_is_set_around(pair, around):
    def embedded(model):
        tower = load_text_tower(model, f"open_clip:{pair[1]}", "open_clip")
        return tower.project(torch.ones(5, 32, dtype=torch.float32, device="cpu")), tower.embed_text(QUESTIONS)

    model, _ = shared_llava("sdpa")
    wanted = embedded(model)
    with HARMLESS[around]():
        found = embedded(copy.copy(model))  # one that no tower was loaded for
    assert all(map(torch.equal, found, wanted))


def test_the_weights_are_those_of_one_clip(pair):
    """The translation is right: open_clip's whole image tower gives what Hugging Face's gives."""
    whole = open_clip.create_model(f"local-dir:{pair[1]}").eval()
    pixels = ask(shared_llava("sdpa")[1], 2)["pixel_values"]
    with torch.no_grad():
        wanted = CLIPModel.from_pretrained(pair[0]).eval().get_image_features(pixels).pooler_output
        torch.testing.assert_close(whole.encode_image(pixels), wanted, atol=1e-5, rtol=0)


def test_signals_and_pruning_through_open_clip(pair):
    model, processor = shared_llava("sdpa")
    inputs = ask(processor, 1, 2)
    both = frozenset({PairedImage(), PairedText()})
    towers = (pair[0], f"open_clip:{pair[1]}")
    signals = [session_for(model, processor, text_tower=tower).visual_tokens(inputs, both).signals for tower in towers]
    for name in both:
        torch.testing.assert_close(signals[0][name], signals[1][name], atol=1e-5, rtol=0)
    keeps = []
    for tower, kind in zip(towers, ("clip_text", "open_clip_text"), strict=True):
        with tp.prune(model, processor, "cdpruner", keep_tokens=8, conditioning=kind, text_tower=tower) as trace:
            model.generate(**inputs, max_new_tokens=1)
        keeps.append(trace.keep)
    assert torch.equal(*keeps)


def test_a_named_model_with_a_checkpoint_file(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    (tmp_path / "tiny-clip.json").write_text(json.dumps(SIZES))
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    tower = open_clip_tower.load(f"tiny-clip@{pair[1]}/open_clip_model.safetensors", CPU)
    folder = open_clip_tower.load(pair[1], CPU)
    assert torch.equal(tower.embed_text(QUESTIONS), folder.embed_text(QUESTIONS))
    with pytest.raises(ModelError, match="'tiny-clip' needs weights, as in tiny-clip@<weights>"):
        open_clip_tower.load("tiny-clip", CPU)


@pytest.mark.parametrize(("name", "quick"), [("ViT-L-14-336@openai", True), ("ViT-B-32@laion2b_s34b_b79k", False)])
def test_openai_s_weights_get_the_activation_that_they_need(name, quick, monkeypatch):
    asked = {}

    def create(model, **options):
        asked.update(options)
        raise RuntimeError("no download here")

    monkeypatch.setattr(open_clip, "create_model", create)
    with pytest.raises(ModelError, match=r"cannot be loaded \(no download here\)"):
        open_clip_tower.load(name, CPU)
    assert asked["force_quick_gelu"] is quick
    assert asked["pretrained"] == name.split("@")[1]


def test_siglip_embeds_a_patch_as_if_it_pooled_that_patch_alone():
    sizes = {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2, "num_classes": 0}
    trunk = timm.create_model("vit_base_patch16_siglip_224", **sizes).eval()
    assert trunk.global_pool == "map"
    visual = torch.nn.Module()  # as open_clip's TimmModel without a projection
    visual.trunk, visual.head = trunk, torch.nn.Sequential()
    family, norm, head, width = open_clip_tower._patch_head(visual)
    assert (family, norm, width) == ("siglip", trunk.norm, 32)
    hidden = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embeds = head(norm(hidden))
        assert embeds.shape == (2, 4, 32)
        # Four copies of one patch pool to what the patch alone gives, whatever the attention.
        copies = hidden[0, 2].expand(1, 4, 32)
        torch.testing.assert_close(trunk.forward_head(trunk.norm(copies))[0], embeds[0, 2])
        assert not torch.allclose(trunk.forward_head(trunk.norm(hidden))[0], embeds[0, 2])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("ViT-L-41@openai", "unknown open_clip model 'ViT-L-41'; near names: .*ViT-L-14"),
        ("ViT-B-32", "'ViT-B-32' needs weights, as in ViT-B-32@<weights>; Allowed: .*openai"),
        ("ViT-B-32@nothing", "cannot be loaded"),
    ],
)
def test_what_open_clip_does_not_have(source, message):
    with pytest.raises(ModelError, match=message):
        open_clip_tower.load(source, CPU)


def test_a_folder_without_weights(tmp_path, caplog):
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": SIZES}))
    with caplog.at_level(logging.CRITICAL), pytest.raises(ModelError, match="cannot be loaded"):
        open_clip_tower.load(str(tmp_path), CPU)


def test_a_tower_without_patches():
    model = open_clip.model.CLIP(
        embed_dim=8,
        vision_cfg={"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
        text_cfg={"context_length": 8, "width": 8, "heads": 1, "layers": 1},
    )
    with pytest.raises(ModelError, match="ModifiedResNet has no head that embeds single patches"):
        open_clip_tower.OpenClipTower(model, None)


def test_no_word_is_a_special_token(pair):
    """Each tower would pool at the end that a question names."""
    for tower in (clip_tower.load(pair[0], CPU), open_clip_tower.load(pair[1], CPU)):
        plain, said = (tower.tokenize(text).tolist() for text in ("is there a star?", "is <end_of_text> there a star?"))
        assert [said.count(token) for token in (plain[0], plain[-1])] == [1, 1]
        assert len(said) > len(plain) + 1
    assert open_clip_tower.load(pair[1], CPU).tokenize("<END_OF_TEXT>").tolist().count(plain[-1]) == 1
