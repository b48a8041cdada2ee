import open_clip
import pytest
import torch
from open_clip_siglip import save_open_clip

import tokenprune as tp
from tokenprune.core.errors import ModelError
from tokenprune.testing.families import families
from tokenprune.testing.families.gemma3 import PIXELS
from tokenprune.testing.towers import save_siglip, tiny_siglip, uneven
from tokenprune.towers.text import open_clip as open_clip_tower
from tokenprune.towers.text import siglip as siglip_tower

CPU = torch.device("cpu")
LONG = "is there a red circle on the left and a blue star on the right ?"
QUESTIONS = ["what color is the circle ?", LONG, "where ?"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """One SigLIP twice: a folder of Hugging Face's, and one of open_clip's with the same weights."""
    return save_siglip(tmp_path_factory.mktemp("hf")), save_open_clip(tmp_path_factory.mktemp("open_clip"))


@pytest.fixture(params=["siglip", "siglip2"])
def tower(request):
    return siglip_tower.SiglipTower(*tiny_siglip(request.param))


def hidden(*shape):
    return torch.randn(*shape, 32, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_weights_are_those_of_one_siglip(pair):
    """The translation is right: open_clip's whole towers give what Hugging Face's give."""
    ours, tokenizer = tiny_siglip()
    whole = open_clip.create_model(f"local-dir:{pair[1]}").eval()
    pixels = torch.randn(2, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    wanted = ours.get_image_features(pixels).pooler_output
    torch.testing.assert_close(whole.encode_image(pixels), wanted, atol=1e-4, rtol=1e-4)
    text = tokenizer(QUESTIONS[0], padding="max_length", max_length=12, return_tensors="pt").input_ids
    wanted = ours.get_text_features(text).pooler_output
    torch.testing.assert_close(whole.encode_text(text), wanted, atol=1e-4, rtol=1e-4)


def test_both_libraries_give_the_same_embeddings(pair):
    ours, theirs = siglip_tower.load(pair[0], CPU), open_clip_tower.load(pair[1], CPU)
    assert (theirs.width, theirs.context, theirs.pad) == (ours.width, ours.context, ours.pad) == (32, 12, 3)
    for question in [*QUESTIONS, ""]:
        assert theirs.tokenize(question).tolist() == ours.tokenize(question).tolist()
    assert len(ours.tokenize(LONG)) == 16  # two segments
    texts = [tower.embed_text(QUESTIONS) for tower in (ours, theirs)]
    assert texts[0].shape == (3, 2, 32)
    torch.testing.assert_close(*texts, atol=1e-4, rtol=1e-4)
    for normed in (False, True):
        patches = [tower.project(hidden(2, 25), normed=normed) for tower in (ours, theirs)]
        torch.testing.assert_close(*patches, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_only_patch_of_an_image_is_embedded_as_the_image_is(tower):
    """So is each of many that are alike, whatever the attention; if they differ, none is."""
    head = tower.head
    one = hidden(3, 1)
    torch.testing.assert_close(tower.project(one)[:, 0], head(tower.norm(one)))
    torch.testing.assert_close(tower.project(one, normed=True)[:, 0], head(one))
    alike = one.expand(3, 7, 32)
    torch.testing.assert_close(tower.project(alike), head(tower.norm(alike))[:, None].expand(3, 7, 32))
    many = hidden(3, 7)
    assert not torch.isclose(tower.project(many), head(tower.norm(many))[:, None]).all(-1).any()


@torch.no_grad()
def test_an_image_of_one_patch():
    """Through the whole vision model."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    model, tokenizer = tiny_siglip()
    config = SiglipVisionConfig(**{**model.config.vision_config.to_dict(), "image_size": 8})
    torch.manual_seed(0)
    model.vision_model = uneven(SiglipVisionModel(config))
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = model.vision_model(pixels, output_hidden_states=True)
    assert seen.last_hidden_state.shape == (2, 1, 32)
    tower = siglip_tower.SiglipTower(model, tokenizer)
    torch.testing.assert_close(tower.project(seen.hidden_states[-1])[:, 0], seen.pooler_output)
    torch.testing.assert_close(tower.project(seen.last_hidden_state, normed=True)[:, 0], seen.pooler_output)


@torch.no_grad()
def test_value_output_and_mlp_by_hand():
    model, tokenizer = tiny_siglip()
    head, norm, x = model.vision_model.head, model.vision_model.post_layernorm, hidden(2, 5)
    weight, bias = (part[-32:] for part in (head.attention.in_proj_weight, head.attention.in_proj_bias))
    out = head.attention.out_proj(norm(x) @ weight.T + bias)
    wanted = out + head.mlp(head.layernorm(out))
    torch.testing.assert_close(siglip_tower.SiglipTower(model, tokenizer).project(x), wanted, atol=1e-5, rtol=1e-5)


def test_many_patches_are_embedded_some_at_a_time(tower, monkeypatch):
    whole = tower.project(hidden(2, 25))
    monkeypatch.setattr(siglip_tower, "AT_ONCE", 7)
    torch.testing.assert_close(tower.project(hidden(2, 25)), whole)


@torch.no_grad()
def test_a_text_is_pooled_as_the_model_does(tower):
    """Filled up to the whole context; one that is longer in segments, each filled up by itself."""
    model, tokenizer = tower.text_model, tower.tokenizer
    embeds = tower.embed_text(QUESTIONS)
    for row, question in zip(embeds, QUESTIONS, strict=True):
        ids = tokenizer(question, padding="max_length", max_length=24).input_ids
        parts = (ids[:12], ids[12:] if question == LONG else ids[:12])
        for segment, part in zip(row, parts, strict=True):
            torch.testing.assert_close(segment, model(torch.tensor([part])).pooler_output[0])
    just = "red " * 12  # fills one segment; its end of text would be alone in the next
    assert tower.embed_text([just]).shape == (1, 1, 32)


@pytest.mark.parametrize("name", [name for name, family in families().items() if family.tower == "siglip"])
def test_families_keep_the_same_through_both_libraries(pair, name):
    family = families()[name]
    model, processor = family.build("sdpa")
    inputs, keeps = family.ask(processor, 1, 2), []
    for tower, kind in zip((pair[0], f"open_clip:{pair[1]}"), ("clip_text", "open_clip_text"), strict=True):
        with tp.prune(model, processor, "cdpruner", keep_tokens=8, conditioning=kind, text_tower=tower) as trace:
            model.generate(**inputs, max_new_tokens=1)
        assert trace.counts == family.counts(model, inputs, 8)
        keeps.append([stage.keep for stage in trace.stages])
    assert keeps[0] == keeps[1]
    with tp.prune(model, processor, "cdpruner", keep_tokens=8, conditioning="none") as trace:
        model.generate(**inputs, max_new_tokens=1)
    assert [stage.keep for stage in trace.stages] != keeps[0]  # the text has a say


def test_what_is_no_siglip(tmp_path):
    model, tokenizer = tiny_siglip()
    with pytest.raises(ModelError, match=r"cannot be loaded \(.*; give another text_tower="):
        siglip_tower.load(str(tmp_path / "nothing"), CPU)
    for part in (model.text_model, tokenizer):
        part.save_pretrained(tmp_path / "half")
    with pytest.raises(ModelError, match="half"):
        siglip_tower.load(str(tmp_path / "half"), CPU)
    model.config.vision_config.vision_use_head = False
    for part in (type(model)(model.config), tokenizer):
        part.save_pretrained(tmp_path / "headless")
    with pytest.raises(ModelError, match="has no pooling head"):
        siglip_tower.load(str(tmp_path / "headless"), CPU)
