import pytest
import torch
from transformers import CLIPModel, CLIPTextModelWithProjection

import tokenprune as tp
from tokenprune.core.errors import ModelError
from tokenprune.core.signals import PairedImage, PairedText, PromptMask
from tokenprune.engine.loading import adapter_for, session_for
from tokenprune.engine.session import Session
from tokenprune.testing.families.llava import ask, shared_llava
from tokenprune.testing.pruners import Project, Relevance
from tokenprune.testing.towers import tiny_clip
from tokenprune.towers.text.clip import ClipTower, load

BOTH = frozenset({PairedImage(), PairedText()})


@pytest.fixture
def saved(tmp_path):
    for part in tiny_clip():
        part.save_pretrained(tmp_path / "clip")
    return str(tmp_path / "clip")


@torch.no_grad()
def test_embeddings_are_those_of_the_whole_clip(saved):
    model, processor = shared_llava("sdpa")
    clip, tokenizer = tiny_clip()
    inputs = ask(processor, 1, 2)
    tokens = session_for(model, processor, text_tower=saved).visual_tokens(inputs, BOTH)
    seen = clip.vision_model(inputs["pixel_values"], output_hidden_states=True).hidden_states[-2][:, 1:]
    patches = clip.visual_projection(clip.vision_model.post_layernorm(seen))
    torch.testing.assert_close(tokens.signals["clip_image_embeds"], patches)
    assert tokens.signals["clip_image_embeds"].shape == (3, 25, 24)
    for image, question in enumerate(["what color is the circle ?", *["how many red things are there ?"] * 2]):
        text = clip.get_text_features(**tokenizer([question], return_tensors="pt")).pooler_output
        torch.testing.assert_close(tokens.signals["clip_text_embeds"][image], text)


@torch.no_grad()
@pytest.mark.parametrize("eos", [None, 2], ids=["at the end of text", "at the largest id"])
def test_a_long_question_goes_through_in_segments(eos):
    clip, tokenizer = tiny_clip(eos_token_id=eos)
    tower = ClipTower(clip, tokenizer)
    ids = tokenizer("is there a red circle on the left and a blue star on the right ?").input_ids
    assert len(ids) == 18 > tower.context == 12
    embeds = tower.embed_text(["is there a red circle on the left and a blue star on the right ?", "where ?"])
    assert embeds.shape == (2, 2, 24)
    for segment, part in enumerate((ids[:12], ids[12:])):
        states = clip.text_model(torch.tensor([part])).last_hidden_state[0]
        if eos == 2:
            at = part.index(max(part))
        else:
            at = part.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in part else 0
        torch.testing.assert_close(embeds[0, segment], clip.text_projection(states[at]))
    assert torch.equal(embeds[1, 0], embeds[1, 1])


def test_only_what_is_required_is_computed(saved, monkeypatch):
    adapter = adapter_for(*shared_llava("sdpa"), text_tower=saved)
    inputs = ask(adapter.processor, 1)
    for one in BOTH:
        assert Session(adapter).visual_tokens(inputs, frozenset({one})).signals.keys() == {str(one)}
    monkeypatch.setattr(ClipTower, "embed_text", lambda *args: pytest.fail("text embedded"))
    Session(adapter).visual_tokens(inputs, frozenset({PairedImage()}))
    monkeypatch.setattr(ClipTower, "project", lambda *args: pytest.fail("patches embedded"))
    Session(adapter).visual_tokens(inputs, frozenset({PromptMask()}))


def test_the_question_matters_and_can_be_given(saved):
    model, processor = shared_llava("sdpa")
    inputs = ask(processor, 1, 1)
    inputs["pixel_values"] = inputs["pixel_values"][:1].repeat(2, 1, 1, 1)
    keeps = {}
    for question in (None, "is there a star ?", ["is there a star ?", "where is the red thing ?"]):
        with tp.prune(model, processor, Relevance(), keep_tokens=8, text_tower=saved, question=question) as trace:
            model.generate(**inputs, max_new_tokens=1)
        keeps[str(question)] = trace.keep.tolist()
    own, one, two = keeps.values()
    assert own[0] != own[1]
    assert one[0] == one[1] == two[0] != two[1]


@pytest.mark.parametrize("kind", ["clip", "open_clip"])
def test_the_pruner_s_library_must_be_the_tower_s(saved, kind):
    model, processor = shared_llava("sdpa")
    block = tp.prune(model, processor, Relevance(library=kind), keep_tokens=8, text_tower=saved)
    if kind == "clip":
        with block as trace:
            model.generate(**ask(processor, 1), max_new_tokens=1)
        assert trace.counts == [(25, 8)]
    else:
        with pytest.raises(ModelError, match="needs text_tower to be open_clip"), block:
            pass


def test_loading_does_not_count_as_selection(saved, monkeypatch):
    import time

    from tokenprune.towers.text import clip as clip_tower

    model, processor = shared_llava("eager")
    slow, real = [], clip_tower.load
    monkeypatch.setattr(clip_tower, "load", lambda *args: slow.append(time.sleep(0.5)) or real(*args))
    with tp.prune(model, processor, Relevance(), keep_tokens=8, text_tower=saved) as trace:
        model.generate(**ask(processor, 1), max_new_tokens=1)
    assert len(slow) == 1
    assert trace.seconds["selection"] < 0.5


def test_what_is_no_tower(tmp_path, saved):
    model, processor = shared_llava("sdpa")
    with pytest.raises(ModelError, match=r"cannot be loaded \(.*; give another text_tower="):
        load(str(tmp_path / "nothing"), torch.device("cpu"))
    clip, tokenizer = tiny_clip()
    half = CLIPTextModelWithProjection(clip.config.text_config)
    half.save_pretrained(tmp_path / "half")
    tokenizer.save_pretrained(tmp_path / "half")
    with pytest.raises(ModelError, match=r"CLIPModel|cannot be loaded"):
        load(str(tmp_path / "half"), torch.device("cpu"))
    wide = CLIPModel.from_pretrained(saved)
    wide.config.vision_config.hidden_size = 40
    wrong = CLIPModel(wide.config)
    for part in (wrong, tokenizer):
        part.save_pretrained(tmp_path / "wide")
    with (
        tp.prune(model, processor, Relevance(), keep_tokens=8, text_tower=str(tmp_path / "wide")),
        pytest.raises(ModelError, match="patches of width 40, the vision tower gives 32"),
    ):
        model.generate(**ask(processor, 1), max_new_tokens=1)


def test_a_pruner_that_needs_no_tower_looks_for_none():
    model, processor = shared_llava("sdpa")
    with tp.prune(model, processor, Project(), keep_tokens=8, text_tower="no/such/tower") as trace:
        model.generate(**ask(processor, 1), max_new_tokens=1)
    assert trace.counts == [(25, 8)]
