"""Models that no adapter serves: a family that follows the conventions, and ways not to follow them."""

import pytest
import torch
from tiny_aya_vision import AyaVision
from tiny_vipllava import vipllava

import tokenprune as tp
from tokenprune.adapters.auto import AutoAdapter
from tokenprune.core.errors import ModelError
from tokenprune.engine.auto_check import auto_adapter
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.session import Session
from tokenprune.testing.checks import check_identity, check_masking
from tokenprune.testing.families import families
from tokenprune.testing.families.llava import ask, tiny_processor
from tokenprune.testing.pictures import picture
from tokenprune.testing.pruners import Project

TILED = ("idefics3", "internvl", "llava_next", "llava_onevision", "mistral3", "smolvlm")  # or of any size
REFUSED = {
    "gemma3": "does not do with fewer visual tokens what it does if the others are masked",
    "paligemma": "gives other logits for images that are encoded beforehand",
    "qwen2_vl": "has position ids of several axes",
    "qwen2_5_vl": "has position ids of several axes",
    "qwen3_vl": "has position ids of several axes",
}


@pytest.fixture
def unknown():
    return vipllava()


def test_an_unknown_model_is_served_once_it_has_been_checked(unknown):
    model, processor = unknown
    adapter = adapter_for(model, processor)
    assert type(adapter) is AutoAdapter
    assert adapter.spec.visual_tokens == 25
    inputs = ask(processor, 1, 2)
    plain = model.generate(**inputs, max_new_tokens=5)
    with tp.prune(model, processor, Project(), keep_ratio=1.0):
        assert torch.equal(model.generate(**inputs, max_new_tokens=5), plain)
    with tp.prune(model, processor, "divprune", keep_tokens=7) as trace:
        model.generate(**inputs, max_new_tokens=5)
    assert trace.counts == [(25, 7), (50, 14)]


def test_inside_the_llm_too(unknown):
    model, processor = unknown
    with tp.prune(model, processor, "fastv", keep_tokens=7) as trace:
        model.generate(**ask(processor, 1, 2), max_new_tokens=5)
    assert trace.counts == [(25, 7), (50, 14)]


def test_signals_of_the_tower_are_not_on_offer(unknown):
    with (
        pytest.raises(ModelError, match="AutoAdapter cannot give the signals"),
        tp.prune(*unknown, "fastervlm", keep_tokens=7),
    ):
        pass


def changed(model, how):
    """The model after something in it works in another way."""
    if how == "mask":  # its last token sees what pruning drops in another way than through the mask
        embed = model.get_input_embeddings()
        forward = embed.forward
        embed.forward = lambda ids: forward(ids) * ids.shape[1] if ids.shape[-1] else forward(ids)
    elif how == "features":
        encode = model.base_model.get_image_features
        calls = iter(range(99))

        def other(pixel_values, **options):
            output = encode(pixel_values, **options)
            output.pooler_output = output.pooler_output + next(calls)
            return output

        model.base_model.get_image_features = other
    return model


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("mask", "does not do with fewer visual tokens"),
        ("features", "other logits for images that are encoded before"),
    ],
)
def test_a_model_that_fails_the_check_is_refused(unknown, how, message):
    model, processor = unknown
    with pytest.raises(ModelError, match=message):
        adapter_for(changed(model, how), processor)


def test_a_model_without_the_conventions_is_refused():
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 9,
    }
    with pytest.raises(ModelError, match="no adapter knows models of type 'llama', and this one has no image_token_id"):
        adapter_for(LlamaForCausalLM(LlamaConfig(**tiny)), tiny_processor())


@pytest.fixture
def nobody(monkeypatch):
    """No adapter knows any model."""
    monkeypatch.setattr("tokenprune.engine.loading.served", dict)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PaliGemma's processor, of numpy
@pytest.mark.parametrize("name", families())
def test_every_family_is_served_or_refused_for_what_is_wrong(nobody, name):
    model, processor = families()[name].build("sdpa")
    if name in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[name]):
            adapter_for(model, processor)
    else:
        assert type(adapter_for(model, processor)) is AutoAdapter


@pytest.mark.parametrize("rows", [(1,), (2, 1)])
@pytest.mark.parametrize("name", TILED)
def test_models_that_cut_images_into_tiles(nobody, monkeypatch, name, rows):
    family = families()[name]
    monkeypatch.setattr(family, "fixed", lambda model, inputs: [[] for _ in rows])  # it takes newlines for any token
    model, processor = family.build("sdpa")
    inputs = family.ask(processor, *rows)
    check_identity(model, processor, inputs, tp.create_pruner("uniform"))
    for pruner in (Project(), tp.create_pruner("fastv", layer=2)):
        check_masking(family, model, processor, inputs, pruner, keep_tokens=13)


@pytest.mark.parametrize("rows", [(1,), (2, 1)])
@pytest.mark.parametrize("name", ["internvl", "llava"])
def test_a_budget_is_of_an_image_as_with_an_adapter(name, rows):
    """Not of a tile; and images side by side stay two where an image is no tiles."""
    family = families()[name]
    model, processor = family.build("sdpa")
    inputs = family.ask(processor, *rows)
    if name == "llava":
        texts, images = ["<image>" * number + " where ?" for number in rows], [picture(n) for n in range(sum(rows))]
        inputs = dict(processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="pt"))
    known, auto = adapter_for(model, processor, scope="image"), auto_adapter(model, processor)
    pruner, budget = tp.create_pruner("divprune"), tp.Budget(keep_tokens=7)
    ours, theirs = (Session(adapter).prune_inputs(inputs, pruner, budget).kept for adapter in (auto, known))
    assert ours.sum() == 7 * sum(rows)
    assert torch.equal(ours, theirs)
    assert auto.spec.visual_tokens == {"internvl": 10 * 25, "llava": 25}[name]


@pytest.mark.parametrize("rows", [(1,), (2, 1), (1, 1, 1)])
def test_tiles_with_text_between_them_are_one_image_a_prompt(rows):
    """It is not known where an image ends."""
    family = AyaVision()
    model, processor = family.build("sdpa")
    adapter, inputs = adapter_for(model, processor), family.ask(processor, *rows)
    assert (type(adapter), adapter.tiles, adapter.spec.visual_tokens) == (AutoAdapter, "apart", 5 * 9)
    assert Session(adapter).encode(inputs).layout.sizes == tuple(
        adapter.placeholders(inputs["input_ids"]).sum(1).tolist()
    )
    check_identity(model, processor, inputs, tp.create_pruner("uniform"))
    trace = check_masking(family, model, processor, inputs, Project(), keep_tokens=8)
    assert [kept for _, kept in trace.counts] == [8] * len(rows)
