import numpy as np
import pytest
import torch
from golden_data import load
from torch.nn.functional import layer_norm

import tokenprune as tp
from tokenprune import VisualTokens, create_pruner
from tokenprune.core.errors import ConfigError
from tokenprune.testing.families.llava import ask, shared_llava
from tokenprune.testing.towers import saved_towers

TRIM = create_pruner("trim")


def golden():
    """The case, and its tokens; the text tower's norm and projection are those of the case."""
    case = load("trim_keep64")
    x = case["image_features"]
    embeds = layer_norm(x, x.shape[2:], case["ln_weight"], case["ln_bias"]) @ case["proj_weight"].mT
    return case, VisualTokens(x, {"clip_image_embeds": embeds, "clip_text_embeds": case["text_embeds"]})


def test_kept_tokens_and_the_mean_are_those_of_the_official_code():
    case, tokens = golden()
    chosen = TRIM.select(tokens, 65)
    assert torch.equal(chosen.sequence[:, :64], case["kept"].long())
    at = torch.searchsorted(chosen.keep, chosen.sequence)
    made = chosen.merged.gather(1, at[..., None].expand_as(chosen.merged))
    torch.testing.assert_close(made, case["output_tokens"], atol=1e-3, rtol=1e-3)  # it is of half precision
    assert torch.equal(made[:, :64], case["output_tokens"][:, :64])


def test_the_official_code_s_similarities_are_a_softmax_of_the_scores():
    case, tokens = golden()
    torch.testing.assert_close(TRIM.score(tokens).softmax(1), case["similarities"], atol=1e-6, rtol=1e-3)


def test_as_many_stay_as_have_unusual_similarities():
    """By numpy's percentiles of the official code's similarities, as its default has it, and one mean."""
    case, tokens = golden()
    similarities = case["similarities"][0].numpy()
    low, high = np.percentile(similarities, [25, 75])
    number = int((similarities > high + 1.5 * (high - low)).sum())
    assert 0 < number < 500
    pruner = create_pruner("trim", count="outliers")
    chosen, wanted = pruner.select(tokens, 576), TRIM.select(tokens, number + 1)
    assert pruner.adaptive
    assert torch.equal(chosen.sequence, wanted.sequence)
    assert torch.equal(chosen.merged, wanted.merged)
    assert pruner.select(tokens, 3).keep.shape == (1, 3)  # the budget is a bound


def test_by_hand():
    # Dot products 2, 3, -1, 0: the longer of two in one direction counts more, and the lowest are kept.
    patches = torch.tensor([[[2.0, 0], [3, 0], [-1, 5], [0, 1]]])
    features = torch.tensor([[[10.0], [20], [30], [40]]])
    tokens = VisualTokens(features, {"clip_image_embeds": patches, "clip_text_embeds": torch.tensor([[7.0, 0]])})
    chosen = TRIM.select(tokens, 3)
    assert chosen.sequence.tolist() == [[2, 3, 0]]  # the mean stands in for the best of those that leave
    assert chosen.keep.tolist() == [[0, 2, 3]]
    assert chosen.merged[0, :, 0].tolist() == [15, 30, 40]
    assert TRIM.select(tokens, 1).merged.tolist() == [[[25.0]]]


def test_cls_is_neither_kept_nor_in_the_mean():
    patches = torch.tensor([[[0.0, 0], [2, 0], [3, 0], [4, 0]]])
    features = torch.tensor([[[1000.0], [20], [30], [40]]])
    signals = {"clip_image_embeds": patches, "clip_text_embeds": torch.tensor([[1.0, 0]])}
    tokens = VisualTokens(features, signals, special=torch.arange(4) == 0)
    chosen = TRIM.select(tokens, 2)
    assert chosen.sequence.tolist() == [[1, 2]]
    assert chosen.merged[0, :, 0].tolist() == [20, 35]


def test_scores_of_the_pieces_of_a_long_question_are_averaged():
    patches = torch.tensor([[[1.0, 0], [0, 1.5], [0.9, 0.9]]])
    texts = torch.tensor([[1.0, 0], [0, 1]])  # means of 0.5, 0.75 and 0.9
    tokens = VisualTokens(torch.zeros(1, 3, 1), {"clip_image_embeds": patches, "clip_text_embeds": texts})
    assert TRIM.select(tokens, 2).sequence.tolist() == [[0, 1]]


def test_another_count_is_refused():
    with pytest.raises(ConfigError, match="Allowed: budget, outliers"):
        create_pruner("trim", count="all")


def test_on_a_model_the_mean_is_projected():
    model, processor = shared_llava("sdpa")
    inputs, tower = ask(processor, 1), saved_towers()["clip"]
    with tp.prune(model, processor, "trim", keep_tokens=1, text_tower=tower, trace_features=True) as trace:
        model(**inputs, logits_to_keep=1)
    states = model.base_model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    mean = states[model.config.vision_feature_layer][:, 1:].mean(1, keepdim=True)
    wanted = model.base_model.multi_modal_projector(mean)
    torch.testing.assert_close(trace.last.selection.merged, wanted, atol=1e-5, rtol=1e-4)
