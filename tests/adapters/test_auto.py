"""Models that no adapter serves: a family that follows the conventions, and ways not to follow them."""

import pytest
import torch
from tiny import Project, ask, tiny_processor
from tiny_vipllava import vipllava

import tokenprune as tp
from tokenprune.adapters.auto import AutoAdapter
from tokenprune.adapters.known import adapter_for
from tokenprune.errors import ModelError


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
        tp.prune(*unknown, "cdpruner", keep_tokens=7),
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
