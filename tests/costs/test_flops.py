"""FLOPs: what the counter counts, and what CDPruner's paper prints."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration
from transformers.models.clip.modeling_clip import CLIPVisionConfig, CLIPVisionModel

from tokenprune.adapters.llava import LlavaAdapter
from tokenprune.core.budget import Budget
from tokenprune.core.plan import OperationPlan
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.core.stages import PRE_LLM, decoder
from tokenprune.costs.flops import llm_prefill_flops, lm_head_flops, projector_flops, vision_flops
from tokenprune.embedded.model import llava_config
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.session import Session
from tokenprune.pruners.base import create_pruner
from tokenprune.testing.families.llava import ask, shared_llava

LLAMA_7B = TransformerSpec(layers=32, width=4096, mlp_width=11008, heads=32, kv_heads=32, head_dim=128, mlp_matrices=3)
LLAVA_7B = ModelSpec(llm=LLAMA_7B, vocabulary=32064, visual_tokens=576)


def tiny_llama(kv_heads):
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=88,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        attn_implementation="eager",  # the counter has no formula for SDPA on a CPU
    )
    spec = ModelSpec(TransformerSpec(3, 32, 88, 4, kv_heads, 8, 3), vocabulary=50, visual_tokens=20)
    return LlamaForCausalLM(config).eval(), spec


def counted(model, tokens):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs_embeds=torch.randn(1, tokens, 32), logits_to_keep=1)
    return counter.get_total_flops()


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("keep", [20, 7])
def test_llm_prefill_equals_the_counter(kv_heads, keep):
    model, spec = tiny_llama(kv_heads)
    plan = OperationPlan.drop_at(spec, [PRE_LLM], [keep], 20)
    assert counted(model, 5 + keep) == llm_prefill_flops(spec, plan, text_tokens=5) + lm_head_flops(spec)


@pytest.mark.parametrize("keep", [25, 7])
def test_a_pruned_llava_equals_the_counter(keep):
    """From the model's config to the last matrix product: the adapter's sizes, the pruner's plan, the real prefill."""
    adapter = adapter_for(*shared_llava("eager"))
    pruner = create_pruner("uniform")
    inputs = Session(adapter).prune_inputs(ask(adapter.processor, 1), pruner, Budget(keep_tokens=keep)).inputs
    with FlopCounterMode(display=False) as counter:
        Session(adapter).prefill(inputs)
    plan = pruner.plan(adapter.spec, [keep], 25)
    text = inputs["input_ids"].shape[1] - keep
    expected = llm_prefill_flops(adapter.spec, plan, text) + lm_head_flops(adapter.spec)
    assert counter.get_total_flops() == expected


def test_the_embedded_encoder_equals_the_counter():
    config = llava_config()
    spec = LlavaAdapter.spec_from_config(config)
    model = LlavaForConditionalGeneration(config).eval()
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.base_model.get_image_features(torch.randn(1, 3, 96, 96))
    assert counter.get_total_flops() == vision_flops(spec) + projector_flops(spec)


def test_tokens_that_leave_inside_cost_until_they_leave():
    _, spec = tiny_llama(2)
    full, none = (llm_prefill_flops(spec, OperationPlan.drop_at(spec, [PRE_LLM], [k], 20), 5) for k in (20, 4))
    late = llm_prefill_flops(spec, OperationPlan.drop_at(spec, [decoder(2)], [4], 20), 5)
    assert late == 2 * full // 3 + none // 3
    twice = llm_prefill_flops(spec, OperationPlan.drop_at(spec, [decoder(1), decoder(2)], [20, 4], 20), 5)
    assert twice == late


def test_operations_are_charged_apart():
    _, spec = tiny_llama(2)
    active = torch.ones(3, 3, 1, dtype=torch.bool)
    costs = []
    for operation in (None, 0, 1, 2):
        switched = active.clone()
        if operation is not None:
            switched[:, operation] = False
        costs.append(llm_prefill_flops(spec, OperationPlan(switched, (20,)), 5))
    full, no_source, no_receiver, no_mlp = costs
    assert full - no_source == 3 * 2 * (20 * 32 * 2 * 16 + 2 * 32 * 25 * 20)
    assert full - no_receiver == 3 * 2 * (20 * 32 * 2 * 32 + 2 * 32 * 20 * 25)
    assert full - no_mlp == 3 * 2 * 20 * 3 * 32 * 88


@pytest.mark.parametrize(("keep", "published"), [(576, 7.63), (128, 1.67), (64, 0.83), (32, 0.42)])
def test_figures_of_the_cdpruner_paper(keep, published):
    plan = OperationPlan.drop_at(LLAVA_7B, [PRE_LLM], [keep], 576)
    assert llm_prefill_flops(LLAVA_7B, plan, text_tokens=0) / 1e12 == pytest.approx(published, abs=0.0051)


def test_vision_equals_the_counter():
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=24, patch_size=8
    )
    config._attn_implementation = "eager"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        CLIPVisionModel(config).eval()(torch.randn(1, 3, 24, 24))
    spec = ModelSpec(
        LLAMA_7B,
        vocabulary=1,
        visual_tokens=9,
        vision=TransformerSpec(2, 32, 64, 4, 4, 8, 2),
        vision_tokens=10,
        vision_prefix=1,
        patch_inputs=3 * 8 * 8,
    )
    assert vision_flops(spec) == counter.get_total_flops()
    assert vision_flops(LLAVA_7B) == 0


def test_projector():
    spec = ModelSpec(LLAMA_7B, vocabulary=1, visual_tokens=9, projector=(8, 4, 2))
    assert projector_flops(spec) == 2 * 9 * (8 * 4 + 4 * 2)
