"""A method before the projector, as a third party writes it, against the official code and on a model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import tokenprune as tp
from tokenprune.core.errors import ModelError
from tokenprune.engine.loading import session_for
from tokenprune.testing.families import families
from tokenprune.testing.families.llava import ask, shared_llava

GOLDEN = Path(__file__).parents[1] / "golden/visionzip_54_10.npz"


@pytest.fixture
def method(outside):
    return outside("visionzip.py")["VisionZip"]


def test_the_official_code_s_tokens(method):
    case = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN).items() if value.dtype.kind != "U"}
    x, heads = case["hidden_states"], case["cls_attention"].shape[1]
    attention = case["cls_attention"].clone()
    attention[:, :, 0] = 0
    tokens = tp.VisualTokens(
        x,
        {"cls_attention": attention, "keys": case["key_metric"].repeat(1, 1, heads)},
        special=torch.arange(x.shape[1]) == 0,
    )
    chosen = method().select(tokens, 64)
    assert set(chosen.sequence[0, :54].tolist()) == set(case["dominant_indices"][0].tolist())
    at = torch.searchsorted(chosen.keep, chosen.sequence)
    torch.testing.assert_close(chosen.merged[0, at[0]], case["output_tokens"][0], atol=1e-5, rtol=1e-5)


def test_on_a_model_it_is_what_the_projector_makes_of_these_tokens(method):
    model, processor = shared_llava("sdpa")
    inputs = ask(processor, 1, 1)
    with tp.prune(model, processor, "outside_visionzip", contextual=3, keep_tokens=9, trace_features=True) as trace:
        logits = model(**inputs, logits_to_keep=1).logits
    assert trace.counts == [(25, 9)] * 2
    assert [str(stage.stage) for stage in trace.stages] == ["projector"]
    made = trace.last.selection.merged  # in the order of the prompt: CLS first
    tower = model.base_model.vision_tower(inputs["pixel_values"], output_hidden_states=True)
    cls = tower.hidden_states[model.config.vision_feature_layer][:, :1]
    torch.testing.assert_close(made[:, :1], model.base_model.multi_modal_projector(cls), atol=1e-5, rtol=1e-4)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    image = inputs["input_ids"] == model.config.image_token_id
    for row in range(2):
        text = embeds[row][inputs["attention_mask"][row].bool() & ~image[row]]
        start = int(image[row, inputs["attention_mask"][row].bool()].nonzero()[0])
        prompt = torch.cat([text[:start], made[row].to(text), text[start:]])[None]
        wanted = model(inputs_embeds=prompt, logits_to_keep=1).logits
        torch.testing.assert_close(logits[row], wanted[0], atol=1e-4, rtol=1e-4)


def test_keeping_original_positions_is_refused(method):
    model, processor = shared_llava("sdpa")
    with (
        tp.prune(model, processor, "outside_visionzip", contextual=3, keep_tokens=9, positions="original"),
        pytest.raises(ModelError, match="positions: repacked"),
    ):
        model.generate(**ask(processor, 1), max_new_tokens=1)


def test_a_family_without_the_stage_says_so(method):
    model, processor = families("internvl")["internvl"].build("sdpa")
    with (
        pytest.raises(ModelError, match="InternVLAdapter has no stage projector; allowed: pre_llm, decoder, cache"),
        tp.prune(model, processor, "outside_visionzip", keep_tokens=9),
    ):
        pass


def test_the_order_in_which_projected_tokens_enter_the_prompt():
    @dataclass(frozen=True, kw_only=True)
    class Backwards(tp.Pruner):
        def stages(self, spec):
            return (tp.stages.PROJECTOR,)

        def _select(self, tokens, k):
            keep = torch.arange(1, k + 1).expand(tokens.batch_size, -1)
            return tp.TokenSelection(keep, tokens.num_tokens, sequence=keep.flip(1))

    model, processor = shared_llava("sdpa")
    session, inputs = session_for(model, processor), ask(processor, 1)
    made = session.prune_inputs(inputs, Backwards(), tp.Budget(keep_tokens=4)).selection.merged
    whole = session.encode(inputs).features
    torch.testing.assert_close(made[0], whole[:4].flip(0), atol=1e-5, rtol=1e-4)
