"""Model cards: they are what transformers makes of the published configs, and what the counter counts on meta."""

import logging

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.clip.modeling_clip import CLIPVisionModel
from transformers.models.internvl.modeling_internvl import InternVLVisionModel
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.adapters.llava import LlavaAdapter
from tokenprune.adapters.spec import decoder_spec, vision_spec
from tokenprune.errors import ConfigError
from tokenprune.metrics.flops import llm_decode_flops, llm_prefill_flops, lm_head_flops, projector_flops, vision_flops
from tokenprune.model_card import card_names, load_card
from tokenprune.types import PRE_LLM, ModelSpec, OperationPlan, TransformerSpec

LLAVA_15, LLAVA_NEXT = ("llava-1.5-7b", "llava-1.5-13b"), ("llava-next-7b", "llava-next-13b")
CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
CLIP_L |= {"image_size": 336, "patch_size": 14}


@pytest.fixture(autouse=True)
def quiet():
    """transformers tells of each default that a config takes."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    yield
    logging.getLogger("transformers").setLevel(logging.WARNING)


def text_config(card, kind):
    llm = card.spec.llm
    sizes = {"hidden_size": llm.width, "intermediate_size": llm.mlp_width, "num_hidden_layers": llm.layers}
    heads = {"num_attention_heads": llm.heads, "num_key_value_heads": llm.kv_heads}
    return AutoConfig.for_model(kind, vocab_size=card.spec.vocabulary, tie_word_embeddings=False, **sizes, **heads)


def make(name):
    """The whole model's config and class, from the card's decoder and transformers' own towers."""
    card = load_card(name)
    if name in LLAVA_15 + LLAVA_NEXT:
        config, kind = (LlavaConfig, LlavaForConditionalGeneration)
        if name in LLAVA_NEXT:
            config, kind = (LlavaNextConfig, LlavaNextForConditionalGeneration)
        return config(text_config=text_config(card, "llama"), vision_config=CLIPVisionConfig(**CLIP_L)), kind
    if name == "internvl3-8b":
        made = InternVLConfig(
            text_config=text_config(card, "qwen2"), vision_config=InternVLVisionConfig(), tie_word_embeddings=False
        )
        return made, InternVLForConditionalGeneration
    vision = {"hidden_size": card.spec.vision.width, "out_hidden_size": card.spec.llm.width}
    text = text_config(card, "qwen2_5_vl_text").to_dict()
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision), Qwen2_5_VLForConditionalGeneration


@pytest.mark.parametrize("name", card_names())
def test_the_decoder_is_what_an_adapter_would_read(name):
    config, _ = make(name)
    assert decoder_spec(config.text_config) == load_card(name).spec.llm


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        *[("llava-1.5-7b", 7.06), ("llava-1.5-13b", 13.35), ("llava-next-7b", 7.06), ("llava-next-13b", 13.35)],
        *[("qwen2.5-vl-7b", 8.29), ("internvl3-8b", 7.94)],
    ],
)
def test_the_model_has_as_many_parameters_as_the_hub_says(name, billions):
    config, kind = make(name)
    with torch.device("meta"):
        assert sum(p.numel() for p in kind(config).parameters()) / 1e9 == pytest.approx(billions, abs=0.0051)


def test_llava_is_what_its_adapter_reads():
    for name in LLAVA_15:
        assert LlavaAdapter.spec_from_config(make(name)[0]) == load_card(name).spec
    assert decoder_spec(LlamaConfig()) == load_card("llava-1.5-7b").spec.llm  # its defaults are LLaMA-7B


@pytest.mark.parametrize("name", card_names())
def test_towers(name):
    config, spec = make(name)[0].vision_config, load_card(name).spec
    if name == "qwen2.5-vl-7b":
        config.num_hidden_layers, config.num_attention_heads = config.depth, config.num_heads
        expected = {**vars(vision_spec(config)), "mlp_matrices": 3}  # gated
        assert vars(spec.vision) == expected
        assert spec.vision_window_layers == config.depth - len(config.fullatt_block_indexes)
        assert spec.vision_window == (config.window_size // config.patch_size) ** 2
        assert spec.patch_inputs == 3 * config.temporal_patch_size * config.patch_size**2
        merged = config.hidden_size * config.spatial_merge_size**2
        assert spec.projector == (merged, merged, config.out_hidden_size)
        return
    assert spec.vision == vision_spec(config)
    side, patch = (x[0] if isinstance(x, tuple | list) else x for x in (config.image_size, config.patch_size))
    assert spec.vision_tokens == spec.vision_tiles * ((side // patch) ** 2 + 1)
    assert spec.patch_inputs == 3 * patch**2
    shuffled = round(1 / make(name)[0].downsample_ratio) ** 2 if name == "internvl3-8b" else 1
    assert spec.visual_tokens == spec.vision_tiles * (side // patch) ** 2 // shuffled
    assert spec.projector == (config.hidden_size * shuffled, spec.llm.width, spec.llm.width)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", card_names())
def test_prefill_of_the_decoder_equals_the_counter_on_meta(name, attention):
    """Two of its layers; all of them cost the same."""
    card = load_card(name)
    config = text_config(card, "llama")  # with grouped queries as the card has them; biases are no products
    config.num_hidden_layers, config._attn_implementation = 2, attention
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        LlamaModel(config)(inputs_embeds=torch.empty(1, 104, card.spec.llm.width), use_cache=True)
    plan = OperationPlan.drop_at(card.spec, [PRE_LLM], [64], card.spec.visual_tokens)
    assert counter.get_total_flops() * card.spec.llm.layers == 2 * llm_prefill_flops(card.spec, plan, 40)


def test_a_whole_llava_on_meta():
    """Spent by the unpruned LLM at 576 + 64 tokens in prefill and by one decoded token."""
    spec = load_card("llava-1.5-7b").spec
    config = text_config(load_card("llava-1.5-7b"), "llama")
    plan = OperationPlan.drop_at(spec, (), (), 576)
    with torch.device("meta"), torch.no_grad():
        model = LlamaModel(config)
        with FlopCounterMode(display=False) as prefill:
            cache = cache_of(model(inputs_embeds=torch.empty(1, 640, 4096), use_cache=True))
        with FlopCounterMode(display=False) as decode:
            model(inputs_embeds=torch.empty(1, 1, 4096), **{CACHE: cache})
    assert prefill.get_total_flops() == llm_prefill_flops(spec, plan, 64) == pytest.approx(8.504e12, rel=1e-4)
    assert decode.get_total_flops() == llm_decode_flops(spec, plan, 64) == pytest.approx(13.288e9, rel=1e-4)
    whole = sum((vision_flops(spec), projector_flops(spec), llm_prefill_flops(spec, plan, 64), lm_head_flops(spec)))
    assert whole == pytest.approx(8.910e12, rel=1e-4)


@pytest.mark.parametrize("name", LLAVA_15 + LLAVA_NEXT)
def test_clip_equals_the_counter_on_meta(name):
    spec = load_card(name).spec
    config = CLIPVisionConfig(**CLIP_L)
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        CLIPVisionModel(config)(torch.empty(spec.vision_tiles, 3, 336, 336))
    assert counter.get_total_flops() == vision_flops(spec)


def test_internvit_equals_the_counter_on_meta():
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        InternVLVisionModel(InternVLVisionConfig())(torch.empty(13, 3, 448, 448))
    assert counter.get_total_flops() == vision_flops(load_card("internvl3-8b").spec)


def test_a_window_tower_and_its_merger_equal_the_counter():
    """Small, as it reads values and so does not run on meta: 8 x 8 patches in windows of 16, two layers of three."""
    config = Qwen2_5_VLVisionConfig(
        depth=3, hidden_size=32, intermediate_size=40, num_heads=4, patch_size=4, window_size=16, out_hidden_size=24
    )
    config.fullatt_block_indexes, config._attn_implementation = [1], "eager"
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
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        tower(torch.randn(64, spec.patch_inputs), grid_thw=torch.tensor([[1, 8, 8]]))
    assert counter.get_total_flops() == vision_flops(spec) + projector_flops(spec)


@pytest.mark.parametrize("name", card_names())
def test_windows_and_tiles_fit(name):
    spec = load_card(name).spec
    assert spec.vision_tokens % spec.vision_tiles == 0
    assert spec.vision_tokens % (spec.vision_window or 1) == 0
    assert load_card(name).note.startswith(f"{spec.visual_tokens} tokens: ")


def test_unknown():
    with pytest.raises(ConfigError, match=r"no model card 'llava-1\.5-8b'; did you mean 'llava-1\.5-7b'\?"):
        load_card("llava-1.5-8b")
