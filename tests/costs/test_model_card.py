"""Model cards: an adapter reads them as it reads a config.json, and they are what transformers makes of them."""

import json
import logging

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    InternVLVisionConfig,
    LlamaConfig,
    LlamaModel,
    Mistral3Config,
    Qwen2VLConfig,
    SmolVLMConfig,
)
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.adapters.registry import ADAPTERS, adapter_class
from tokenprune.core.errors import ConfigError
from tokenprune.core.plan import OperationPlan
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.core.stages import PRE_LLM
from tokenprune.costs.counter import counter
from tokenprune.costs.flops import llm_decode_flops, llm_prefill_flops, lm_head_flops, projector_flops, vision_flops
from tokenprune.costs.model_card import card_names, load_card
from tokenprune.engine.loading import config_of, find_checkpoint
from tokenprune.towers.sizes import decoder_spec, vision_spec

ONE_OF_EACH = [
    *("gemma-3-4b", "idefics3-8b", "internvl3-8b", "llava-1.5-7b", "llava-next-7b", "llava-onevision-7b"),
    *("mistral-small-3.1-24b", "paligemma-3b", "paligemma2-3b", "qwen2-vl-7b", "qwen2.5-vl-7b", "qwen3-vl-8b"),
    "smolvlm-500m",
]


@pytest.fixture(autouse=True)
def quiet():
    """transformers tells of each default that a config takes."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    yield
    logging.getLogger("transformers").setLevel(logging.WARNING)


@pytest.mark.parametrize("name", card_names())
def test_a_config_file_of_it_says_the_same(name, tmp_path):
    """A config.json with all that transformers writes into it, read as ``--config`` reads it."""
    card = load_card(name)
    config_of(card.config).save_pretrained(tmp_path)
    assert find_checkpoint(str(tmp_path)).spec == card.spec
    saved = json.loads((tmp_path / "config.json").read_text())
    for part in ("text_config", "vision_config"):
        for key, value in card.config[part].items():
            if key not in ("tie_word_embeddings", "rope_parameters"):
                assert saved[part].get(key) == value, key  # else transformers did not take it


@pytest.mark.parametrize("name", card_names())
def test_what_a_card_says(name):
    card = load_card(name)
    spec = card.spec
    assert card.note.startswith(f"{spec.visual_tokens} tokens: ")
    assert "/" in card.hub
    assert "config.json" in card.source
    assert spec.vision_tokens % spec.vision_tiles == 0
    assert spec.vision_tokens % (spec.vision_window or 1) == 0
    assert spec.projector[-1] == spec.llm.width


def test_each_adapter_has_a_card():
    kinds = {load_card(name).config["model_type"] for name in card_names()}
    for adapter in ADAPTERS.names():
        assert kinds & set(ADAPTERS.get(adapter).model_types), adapter


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in ONE_OF_EACH else [pytest.mark.slow]) for n in card_names()]
)
def test_the_model_has_as_many_parameters_as_the_hub_says(name):
    card = load_card(name)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config_of(card.config))
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(card.billions, abs=0.0051)


def test_defaults_of_transformers_that_are_published_models():
    assert decoder_spec(LlamaConfig()) == load_card("llava-1.5-7b").spec.llm
    assert adapter_class("mistral3").spec_from_config(Mistral3Config()) == load_card("mistral-small-3.1-24b").spec
    assert vision_spec(InternVLVisionConfig()) == load_card("internvl3-8b").spec.vision
    assert vision_spec(SmolVLMConfig().vision_config).layers == load_card("smolvlm-500m").spec.vision.layers
    tower, card = Qwen2VLConfig().vision_config, load_card("qwen2-vl-7b").spec
    assert (tower.depth, tower.embed_dim, tower.num_heads) == (card.vision.layers, card.vision.width, card.vision.heads)
    tower, card = Qwen2_5_VLVisionConfig(), load_card("qwen2.5-vl-7b")
    for key, value in card.config["vision_config"].items():
        if key not in ("model_type", "hidden_size", "out_hidden_size"):
            assert list(getattr(tower, key)) == value if isinstance(value, list) else getattr(tower, key) == value


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["llava-next-7b", "qwen2.5-vl-7b", "gemma-3-4b"])
def test_prefill_of_a_llama_of_such_sizes_equals_the_counter_on_meta(name, attention):
    """Two of its layers; all of them cost the same."""
    spec = load_card(name).spec
    llm = spec.llm
    sizes = {"hidden_size": llm.width, "intermediate_size": llm.mlp_width, "head_dim": llm.head_dim}
    heads = {"num_attention_heads": llm.heads, "num_key_value_heads": llm.kv_heads, "num_hidden_layers": 2}
    config = AutoConfig.for_model("llama", vocab_size=spec.vocabulary, **sizes, **heads)
    config._attn_implementation = attention
    with torch.device("meta"), counter() as flops, torch.no_grad():
        LlamaModel(config)(inputs_embeds=torch.empty(1, 104, llm.width), use_cache=True)
    plan = OperationPlan.drop_at(spec, [PRE_LLM], [64], spec.visual_tokens)
    assert flops.get_total_flops() * llm.layers == 2 * llm_prefill_flops(spec, plan, 40)


def test_a_whole_llava_on_meta():
    """Spent by the unpruned LLM at 576 + 64 tokens in prefill and by one decoded token."""
    spec, plan = load_card("llava-1.5-7b").spec, OperationPlan.drop_at(load_card("llava-1.5-7b").spec, (), (), 576)
    with torch.device("meta"), torch.no_grad():
        model = LlamaModel(LlamaConfig())
        with counter() as prefill:
            cache = cache_of(model(inputs_embeds=torch.empty(1, 640, 4096), use_cache=True))
        with counter() as decode:
            model(inputs_embeds=torch.empty(1, 1, 4096), **{CACHE: cache})
    assert prefill.get_total_flops() == llm_prefill_flops(spec, plan, 64) == pytest.approx(8.504e12, rel=1e-4)
    assert decode.get_total_flops() == llm_decode_flops(spec, plan, 64) == pytest.approx(13.288e9, rel=1e-4)
    whole = sum((vision_flops(spec), projector_flops(spec), llm_prefill_flops(spec, plan, 64), lm_head_flops(spec)))
    assert whole == pytest.approx(8.910e12, rel=1e-4)


def test_a_window_tower_and_its_merger_equal_the_counter():
    """8 x 8 patches in windows of 16, two layers of three."""
    config = Qwen2_5_VLVisionConfig(
        depth=3, hidden_size=32, intermediate_size=40, num_heads=4, patch_size=4, window_size=16, out_hidden_size=24
    )
    config.fullatt_block_indexes = [1]
    spec = ModelSpec(
        TransformerSpec(1, 24, 1, 1, 1, 1, 3),
        vocabulary=1,
        visual_tokens=16,
        vision=TransformerSpec(3, 32, 40, 4, 4, 8, 3),
        vision_tokens=64,
        vision_window=16,
        vision_window_layers=2,
        patch_inputs=3 * 2 * 4**2,
        projector=(128, 128, 24),
    )
    tower = Qwen2_5_VisionTransformerPretrainedModel(config).eval()
    with counter() as flops, torch.no_grad():
        tower(torch.randn(64, spec.patch_inputs), grid_thw=torch.tensor([[1, 8, 8]]))
    assert flops.get_total_flops() == vision_flops(spec) + projector_flops(spec)


def test_unknown():
    with pytest.raises(ConfigError, match=r"no model card 'llava-1\.5-8b'; did you mean 'llava-1\.5-7b'\?"):
        load_card("llava-1.5-8b")
