import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, SiglipVisionConfig

import tokenprune as tp
from tokenprune.adapters.llava import LlavaAdapter
from tokenprune.core.errors import ModelError
from tokenprune.core.sample import Sample
from tokenprune.core.signals import PromptEmbeds, PromptMask, TextAttention, TowerAttention, TowerKeys, TowerStates
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.core.stages import PROJECTOR
from tokenprune.engine.loading import adapter_for, session_for
from tokenprune.engine.session import Session
from tokenprune.testing.families.llava import ask, shared_llava, tiny_llava, tiny_processor, tiny_vision_config
from tokenprune.testing.pruners import Project

VISION = frozenset({TowerAttention("cls"), TowerKeys(), TowerStates()})


def test_the_spec_of_llava_1_5_7b():
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    text = LlamaConfig(vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000)
    assert LlavaAdapter.spec_from_config(config) == ModelSpec(
        early_stage=PROJECTOR,
        vision_read=23,
        llm=TransformerSpec(32, 4096, 11008, 32, 32, 128, 3),
        vocabulary=32064,
        visual_tokens=576,
        vision=TransformerSpec(24, 1024, 4096, 16, 16, 64, 2),
        vision_tokens=577,
        vision_prefix=1,
        patch_inputs=588,
        projector=(1024, 4096, 4096),
    )


def test_a_vision_tower_that_is_not_known():
    from transformers import PixtralVisionConfig

    config = LlavaConfig(vision_config=PixtralVisionConfig(), image_token_index=4)
    with pytest.raises(ModelError, match="vision tower 'pixtral' is not known; known: clip_vision_model, siglip_"):
        LlavaAdapter.spec_from_config(config)


@torch.no_grad()
@pytest.mark.parametrize("layer", [-2, -1, 2])
@pytest.mark.parametrize("strategy", ["default", "full"])
def test_vision_signals_are_those_of_the_tower(layer, strategy):
    """Against eager attention of the tower and a plain run of it."""
    model, processor = tiny_llava(vision_feature_layer=layer, vision_feature_select_strategy=strategy), tiny_processor()
    processor.vision_feature_select_strategy = strategy
    inputs = ask(processor, 1, 2)
    adapter = adapter_for(model, processor)
    tokens = Session(adapter).visual_tokens(inputs, VISION)
    tower = model.base_model.vision_tower
    tower.set_attn_implementation("eager")
    seen = tower(inputs["pixel_values"], output_hidden_states=True, output_attentions=True)
    first, index = int(strategy == "default"), layer % 5 - 1
    assert tokens.num_tokens == 26 - first
    assert tokens.grid == ((5, 5) if first else None)
    torch.testing.assert_close(tokens.signals["vision_hidden"], seen.hidden_states[layer][:, first:])
    torch.testing.assert_close(tokens.signals["cls_attention"], seen.attentions[index][:, :, 0, first:])
    block = tower.encoder.layers[index]
    keys = block.self_attn.k_proj(block.layer_norm1(seen.hidden_states[index]))
    torch.testing.assert_close(tokens.signals["keys"], keys[:, first:])


def test_each_signal_alone_and_nothing_else(llava):
    adapter, inputs = adapter_for(*llava), ask(llava[1], 1)
    for signal in (*VISION, PromptEmbeds(), PromptMask()):
        assert Session(adapter).visual_tokens(inputs, frozenset({signal})).signals.keys() == {str(signal)}
    assert Session(adapter).visual_tokens(inputs, frozenset()).signals == {}


def test_asking_for_all_hidden_states_changes_nothing(llava):
    adapter, inputs = adapter_for(*llava), ask(llava[1], 1, 2)
    plain, full = (Session(adapter).visual_tokens(inputs, requires).features for requires in (frozenset(), VISION))
    assert torch.equal(plain, full)


@torch.no_grad()
def test_prompt_embeddings(llava):
    model, processor = llava
    requires = frozenset({PromptEmbeds(), PromptMask()})
    tokens = session_for(model, processor).visual_tokens(ask(processor, 1, 2), requires)
    embeds, mask = tokens.signals["prompt_embeds"], tokens.signals["prompt_mask"]
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [6, 7, 7]
    for image, text in enumerate(["what color is the circle ?", *["how many red things are there ?"] * 2]):
        ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0]
        assert torch.equal(embeds[image][mask[image]], model.get_input_embeddings()(ids))


def test_an_empty_question_has_no_embedding(llava):
    adapter, inputs = adapter_for(*llava), ask(llava[1], 1)
    with pytest.raises(ModelError, match="a question is empty"):
        Session(adapter).visual_tokens(inputs, frozenset({PromptEmbeds()}), [""])


def test_signals_that_are_not_on_offer(llava):
    adapter, inputs = adapter_for(*llava), ask(llava[1], 1)
    with pytest.raises(ModelError, match="cannot give the signals text_attention; it offers clip_image_embeds"):
        Session(adapter).visual_tokens(inputs, frozenset({TextAttention()}))


def test_several_feature_layers():
    """The projector may read more layers; pruning works, signals of "the" layer are refused."""
    model, processor = tiny_llava(vision_feature_layer=[-2, -3]), tiny_processor()
    adapter, inputs = adapter_for(model, processor), ask(processor, 1)
    assert adapter.spec.projector == (64, 64, 64)
    with tp.prune(model, processor, Project(), keep_tokens=8) as trace:
        model.generate(**inputs, max_new_tokens=1)
    assert trace.counts == [(25, 8)]
    with pytest.raises(
        ModelError, match=r"several layers of the vision tower, \[2, 1\], so vision_hidden could be any"
    ):
        Session(adapter).visual_tokens(inputs, frozenset({TowerStates()}))


def test_the_patch_embeddings_have_no_attention():
    model, processor = tiny_llava(vision_feature_layer=0), tiny_processor()
    with pytest.raises(ModelError, match="no attention layer before it"):
        session_for(model, processor).visual_tokens(ask(processor, 1), VISION)


def test_a_siglip_tower():
    sizes = tiny_vision_config()
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
        vision_use_head=False,
    )
    model, processor = tiny_llava(vision=vision, vision_feature_select_strategy="full"), tiny_processor()
    processor.vision_feature_select_strategy, processor.num_additional_image_tokens = "full", 0
    adapter, inputs = adapter_for(model, processor), ask(processor, 1)
    assert (adapter.spec.vision_tokens, adapter.spec.visual_tokens, adapter.grid()) == (25, 25, (5, 5))
    with tp.prune(model, processor, Project(), keep_tokens=8) as trace:
        model.generate(**inputs, max_new_tokens=1)
    assert trace.counts == [(25, 8)]
    wanted = frozenset({TowerKeys(), TowerStates(), TowerAttention("patches")})
    signals = Session(adapter).visual_tokens(inputs, wanted).signals
    assert signals["keys"].shape == signals["vision_hidden"].shape == (1, 25, 32)
    with torch.no_grad():
        model.base_model.vision_tower.set_attn_implementation("eager")
        seen = model.base_model.vision_tower(inputs["pixel_values"], output_attentions=True)
    torch.testing.assert_close(signals["received_attention"], seen.attentions[-2].mean(2))
    with pytest.raises(ModelError, match=r"has no CLS token .*; received_attention stands in for cls_attention"):
        Session(adapter).visual_tokens(inputs, frozenset({TowerAttention("cls")}))


def test_prepare(llava):
    from tokenprune.testing.pictures import picture

    model, processor = llava
    adapter = adapter_for(model, processor)
    samples = [Sample.of(picture(i), text, "yes", id=str(i)) for i, text in enumerate(["is there a star ?", "where ?"])]
    prepared = Session(adapter).prepare(samples)
    assert prepared.questions == ["is there a star ?", "where ?"]
    assert prepared.inputs["pixel_values"].shape == (2, 3, 40, 40)
    assert prepared.inputs["attention_mask"][1, 0] == 0  # on the left
    assert Session(adapter).questions(prepared.inputs) == prepared.questions
    assert len(Session(adapter).generate(prepared.inputs, max_new_tokens=2).output) == 2
    bare = tiny_processor()
    bare.chat_template = None
    again = session_for(model, bare).prepare(samples)
    assert torch.equal(again.inputs["input_ids"], prepared.inputs["input_ids"])


def test_a_processor_of_another_model():
    model, processor = shared_llava("sdpa")
    other = tiny_processor()
    other.image_token_id = 77
    with pytest.raises(ModelError, match="images are token 77 there, token 4 here"):
        adapter_for(model, other)
    with pytest.raises(ModelError, match="is not this model's processor"):
        adapter_for(model, processor.tokenizer)


def test_a_model_that_no_adapter_knows():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9))
    with pytest.raises(ModelError, match="type 'gpt2', and this one has no image_token_id; see docs/"):
        adapter_for(model, tiny_processor())


def test_pruned_inputs_need_the_cache(llava):
    from tokenprune.core.budget import Budget
    from tokenprune.core.errors import BudgetError

    adapter, inputs = adapter_for(*llava), ask(llava[1], 1)
    pruned = Session(adapter).prune_inputs(inputs, Project(), Budget(keep_tokens=5))
    with pytest.raises(ModelError, match="use_cache=False"):
        Session(adapter).generate(pruned.inputs, use_cache=False)
    with pytest.raises(BudgetError, match="needs one"):
        Session(adapter).prune_inputs(inputs, Project())
    with pytest.raises(BudgetError, match="exceeds the 25"):
        Session(adapter).prune_inputs(inputs, Project(), Budget(keep_tokens=99))


def test_beam_search_leaves_pruned_inputs_as_they_are(llava):
    from tokenprune.core.budget import Budget

    adapter, inputs = adapter_for(*llava), ask(llava[1], 1, 2)
    pruned = Session(adapter).prune_inputs(inputs, Project(), Budget(keep_tokens=5))
    beams = [Session(adapter).generate(pruned.inputs, num_beams=3, max_new_tokens=4).output for _ in range(2)]
    assert beams[0] == beams[1]
