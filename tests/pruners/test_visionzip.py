import pytest
import torch
from golden_data import cases, load

import tokenprune as tp
from tokenprune import VisualTokens, create_pruner
from tokenprune.core.errors import ConfigError
from tokenprune.testing.families.llava import ask, shared_llava


def tokens_of(case):
    """With CLS among the tokens, as a stage before the projector has it."""
    x, heads = case["hidden_states"], case["cls_attention"].shape[1]
    attention = case["cls_attention"].clone()
    attention[:, :, 0] = 0
    keys = case["key_metric"].repeat(1, 1, heads)  # whose mean over the heads is given
    return VisualTokens(x, {"cls_attention": attention, "keys": keys}, special=torch.arange(x.shape[1]) == 0)


def in_prompt(chosen):
    """(B, K, D) made features in the order in which they enter the prompt."""
    at = torch.searchsorted(chosen.keep, chosen.sequence)
    return chosen.merged.gather(1, at[..., None].expand_as(chosen.merged))


@pytest.mark.parametrize("name", cases("visionzip_*"))
def test_tokens_are_those_of_the_official_code(name):
    case = load(name)
    chosen = create_pruner("visionzip").select(tokens_of(case), 64)
    assert torch.equal(chosen.sequence[:, :54], case["dominant_indices"].long().sort(1).values)
    rest = torch.tensor(sorted(set(range(577)) - set(case["dominant_indices"][0].tolist())))
    assert torch.equal(chosen.sequence[0, 54:], rest[case["target_indices"].long()])
    largest = case["output_tokens"].abs().max()
    torch.testing.assert_close(in_prompt(chosen), case["output_tokens"], atol=2e-6 * float(largest), rtol=0)
    torch.testing.assert_close(in_prompt(chosen)[:, 54:], case["contextual_tokens"], atol=2e-6 * float(largest), rtol=0)


@pytest.mark.parametrize(("dominant", "contextual"), [(162, 30), (108, 20), (54, 10), (27, 5)])
def test_the_ratio_gives_the_published_pairs(dominant, contextual):
    k = dominant + contextual
    assert round(k * create_pruner("visionzip").contextual_ratio) == contextual


def test_by_hand():
    # Attention keeps 4 and CLS. Of 1 2 3 5, the first and third are targets; 2 is like 1, 5 like 3.
    x = torch.tensor([[[9.0], [1], [2], [3], [4], [5]]])
    keys = torch.tensor([[[0.0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [0, 3]]])
    attention = torch.tensor([[[0.0, 0.1, 0.1, 0.1, 0.5, 0.2]]])
    tokens = VisualTokens(x, {"cls_attention": attention, "keys": keys}, special=torch.arange(6) == 0)
    chosen = create_pruner("visionzip", contextual_ratio=0.5).select(tokens, 4)
    assert chosen.sequence.tolist() == [[0, 4, 1, 3]]
    assert chosen.keep.tolist() == [[0, 1, 3, 4]]
    assert chosen.merged[0, :, 0].tolist() == [9, 1 + 2, 3 + 5, 4]  # sums, no means


def test_a_target_that_nothing_is_like_stays_as_it_is():
    x, attention = torch.tensor([[[1.0], [2], [3], [4]]]), torch.tensor([[[0.9, 0.1, 0.1, 0.1]]])
    keys = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [1, 0.1]]])
    tokens = VisualTokens(x, {"received_attention": attention, "keys": keys})
    chosen = create_pruner("visionzip", contextual_ratio=0.7).select(tokens, 3)
    assert chosen.sequence.tolist() == [[0, 1, 2]]
    assert chosen.merged[0, :, 0].tolist() == [1, 2 + 4, 3]


def test_without_contextual_tokens_the_others_are_lost():
    chosen = create_pruner("visionzip", contextual_ratio=0.0).select(tokens_of(load("visionzip_54_10")), 54)
    assert torch.equal(chosen.keep, load("visionzip_54_10")["dominant_indices"].long().sort(1).values)


def test_on_a_model_cls_comes_first():
    model, processor = shared_llava("sdpa")
    inputs = ask(processor, 1, 1)
    with tp.prune(model, processor, "visionzip", contextual_ratio=0.3, keep_tokens=9, trace_features=True) as trace:
        model(**inputs, logits_to_keep=1)
    assert trace.counts == [(25, 9)] * 2
    assert [str(stage.stage) for stage in trace.stages] == ["projector"]
    tower = model.base_model.vision_tower(inputs["pixel_values"], output_hidden_states=True)
    cls = model.base_model.multi_modal_projector(tower.hidden_states[model.config.vision_feature_layer][:, :1])
    torch.testing.assert_close(trace.last.selection.merged[:, :1], cls, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ConfigError, match=r"contextual_ratio.*\[0, 1\)"):
        create_pruner("visionzip", contextual_ratio=ratio)
