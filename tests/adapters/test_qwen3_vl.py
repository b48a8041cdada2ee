"""What Qwen3-VL has of its own: DeepStack. All else is in test_qwen_vl."""

import dataclasses

import pytest
import torch
from transformers import Qwen3VLConfig

import tokenprune as tp
from tokenprune.adapters.qwen3_vl import Qwen3VLAdapter
from tokenprune.core.budget import Budget
from tokenprune.core.errors import ModelError
from tokenprune.core.plan import Operations
from tokenprune.core.selection import TokenSelection
from tokenprune.core.sizes import TransformerSpec
from tokenprune.core.stages import PRE_LLM, decoder
from tokenprune.engine.decoder.hooks import InsideLLM
from tokenprune.engine.decoder.replay import Replay
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.prompt.pruned import prompt_tokens
from tokenprune.engine.prompt.shorten import fresh
from tokenprune.engine.session import Session
from tokenprune.pruners.none import NoPruning
from tokenprune.testing.checks import check_masking, generated
from tokenprune.testing.families.qwen3_vl import FAMILIES, VISION
from tokenprune.testing.families.qwen_vl import tiny_qwen
from tokenprune.testing.masked_layers import masked_layers_logits
from tokenprune.testing.pruners import LAYERS, Planned, Project, Within, depthwise, random_plan

FAMILY = FAMILIES["qwen3_vl"]


@pytest.fixture(params=["sdpa", "eager"])
def built(request):
    return FAMILY.build(request.param)


def config_8b(**text):
    sizes = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32}
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    heads = {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
    return Qwen3VLConfig(
        text_config={**sizes, **heads, "rope_parameters": rope, **text}, vision_config={"out_hidden_size": 4096}
    )


def test_the_spec_of_qwen3_vl_8b():
    spec = Qwen3VLAdapter.spec_from_config(config_8b())
    assert spec.llm == TransformerSpec(36, 4096, 12288, 32, 8, 128, 3)
    assert spec.vision == TransformerSpec(27, 1152, 4304, 16, 16, 72, 2)
    assert (spec.visual_tokens, spec.vision_tokens, spec.patch_inputs) == (1296, 5184, 1536)
    assert (spec.projector, spec.projectors) == ((4608, 4608, 4096), 4)


def test_more_levels_than_layers():
    with pytest.raises(ModelError, match="the LLM has 3 layers, so that DeepStack cannot add behind 3 of them"):
        Qwen3VLAdapter.spec_from_config(config_8b(num_hidden_layers=3))


def test_what_is_added_matters(built):
    """Else a test would not see that it is lost: the reference without it is another model."""
    model, processor = built
    inputs = FAMILY.ask(processor, 1)
    with tp.prune(model, processor, Project(), keep_tokens=7) as trace:
        tokens, logits = generated(model, inputs)

    class Without(type(FAMILY)):
        def added(self, model, inputs):
            return []

    other = Without(FAMILY.kind, FAMILY.vision)
    wrong = masked_layers_logits(model, inputs, trace.stages, ["repacked"], tokens, family=other)
    assert not torch.allclose(logits, wrong, atol=1e-2)


def test_each_kept_token_keeps_its_features():
    model, processor = FAMILY.build("sdpa")
    inputs = FAMILY.ask(processor, 1, 2)
    adapter = adapter_for(model, processor)
    whole = Session(adapter).encode(inputs)
    pruned = Session(adapter).prune_inputs(inputs, Project(), Budget(keep_tokens=7), encoded=whole)
    output = pruned.inputs["mm_encoder_outputs"]["image"]
    for before, after in zip(whole.outputs["image"].deepstack_features, output.deepstack_features, strict=True):
        assert [len(part) for part in after] == [7, 7, 7]
        assert torch.equal(torch.cat(after), torch.cat(list(before))[pruned.kept])


@pytest.mark.parametrize("layers", [(1,), (2,), (3,), (1, 2), (2, 3), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("own", [False, True])
def test_stages_before_and_after_each_addition(built, layers, own):
    inputs = FAMILY.ask(built[1], 2, 1)
    check_masking(FAMILY, *built, inputs, Within(layers=layers, own=own), keep_tokens=6)


def test_before_and_inside(built):
    """Some leave before the LLM, and their features with them; others inside."""
    model, processor = built
    inputs = FAMILY.ask(processor, 1, 2)
    with tp.prune(model, processor, [Project(positions="original"), Within(layers=(2,))], keep_tokens=5) as trace:
        tokens, logits = generated(model, inputs)
    assert [stage.stage for stage in trace.stages] == [PRE_LLM, decoder(2)]
    wanted = masked_layers_logits(model, inputs, trace.stages, ["original"] * 2, tokens, family=FAMILY)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doubling(Project):
    """Makes the features of what it keeps twice as large."""

    positions: str = "original"

    def _select(self, tokens, k):
        chosen = super()._select(tokens, k)
        kept = tokens.features.gather(1, chosen.keep[..., None].expand(-1, -1, tokens.features.shape[2]))
        return TokenSelection(chosen.keep, tokens.num_tokens, merged=2 * kept)


def test_what_is_merged_is_not_merged_into_what_is_added(built):
    model, processor = built
    inputs = FAMILY.ask(processor, 1, 2)
    with tp.prune(model, processor, Doubling(), keep_tokens=7) as trace:
        tokens, logits = generated(model, inputs)

    class Doubled(type(FAMILY)):
        def embeds(self, model, inputs):
            x = super().embeds(model, inputs)
            x[self.placeholder(model, inputs["input_ids"])] *= 2
            return x

    doubled = Doubled(FAMILY.kind, FAMILY.vision)
    wanted = masked_layers_logits(model, inputs, trace.stages, ["original"], tokens, family=doubled)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("plan", [*map(random_plan, range(4)), depthwise(3, 2, 2), depthwise(1, 0, 0)])
def test_replayed_layers_get_their_additions(built, plan):
    """Layers that run again give what the whole model gives under the same plan."""
    model, processor = built
    adapter, inputs = adapter_for(model, processor), FAMILY.ask(processor, 1, 2)
    images = Session(adapter).encode(inputs)
    whole = Session(adapter).prune_inputs(inputs, NoPruning(), encoded=images).inputs
    visual, free = adapter.placeholders(whole["input_ids"]), images.layout.free
    everything = Operations(torch.ones(LAYERS, 3, 1, dtype=torch.bool))
    prompt = prompt_tokens((), visual, images.layout, torch.ones_like(free), operations=everything)
    replay = Replay(model, fresh(whole), prompt, 1)
    pruned = Session(adapter).prune_inputs(inputs, Planned(given=plan), Budget(keep_ratio=1.0), encoded=images)
    with InsideLLM(model, pruned.inside):
        wanted = model(**fresh(pruned.inputs), use_cache=False, logits_to_keep=1).logits
    torch.testing.assert_close(replay.under(plan), wanted, atol=1e-5, rtol=0)
    assert not torch.allclose(wanted, replay.logits, atol=1e-3)  # the plan does something


def test_nothing_to_add(built):
    """A model without levels is as any other."""
    bare = tiny_qwen("Qwen3VL", "sdpa", {**VISION, "deepstack_visual_indexes": []}, head_dim=16)
    inputs = FAMILY.ask(built[1], 1)
    check_masking(FAMILY, bare, built[1], inputs, Within(), keep_tokens=6)
