import pytest
import torch
from golden_data import load

import tokenprune as tp
from tokenprune import VisualTokens, create_pruner
from tokenprune.core.errors import ConfigError
from tokenprune.core.signals import TowerAttention, TowerKeys
from tokenprune.functional.outliers import high_outliers
from tokenprune.pruners.prumerge.merge import joined_attention, merged
from tokenprune.pruners.prumerge.spread import even, spread_by_ratio, spread_once
from tokenprune.testing.families.llava import ask, tiny_llava, tiny_processor

HEADS = 4


def tokens_of(case):
    """With CLS among the tokens, and attention of four heads that queries and keys of the case would have."""
    query, keys = (case[name].double().unflatten(2, (HEADS, -1)).movedim(2, 1) for name in ("q23", "k23"))
    attention = (query @ keys.mT / query.shape[-1] ** 0.5).softmax(-1)[:, :, 0].float()
    attention[:, :, 0] = 0
    signals = {str(TowerAttention("cls", -1)): attention, str(TowerKeys(-1)): case["k23"]}
    return VisualTokens(case["hidden_states"], signals, special=torch.arange(577) == 0)


def in_prompt(chosen):
    """(B, K, D) made features in the order in which they enter the prompt."""
    at = torch.searchsorted(chosen.keep, chosen.sequence)
    return chosen.merged.gather(1, at[..., None].expand_as(chosen.merged))


@pytest.mark.parametrize("name", ["prumerge_adaptive", "prumerge_plus_fixed_1_8"])
def test_the_heads_attention_makes_that_of_all_heads_joined(name):
    case = load(name)
    joined = joined_attention(tokens_of(case).signals[str(TowerAttention("cls", -1))][:, :, 1:])
    torch.testing.assert_close(joined, case["cls_attn"], atol=1e-7, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "k"),
    [
        ("prumerge_adaptive", {"count": "outliers"}, 576),
        ("prumerge_adaptive", {}, 61),
        ("prumerge_plus_fixed_1_8", {"plus": True, "repeat": True}, 145),
    ],
)
def test_tokens_are_those_of_the_official_code(name, options, k):
    """Of the second case the code picks nine tokens twice, whose second places are those of the first dropped ones."""
    case = load(name)
    chosen = create_pruner("prumerge", **options).select(tokens_of(case), k)
    official, number = case["selected_indices"][0].long(), case["output_tokens"].shape[1]
    assert chosen.keep.shape == (1, number)
    seen, first = set(), []
    for pick in official.tolist():
        first.append(pick not in seen)
        seen.add(pick)
    ours = chosen.sequence[0] - 1
    assert torch.equal(ours[:-1][first], official[first])
    dropped = [patch for patch in range(576) if patch not in seen]
    assert ours[[*(not each for each in first), True]].tolist() == dropped[: number - len(seen)]
    largest = float(case["output_tokens"].abs().max())
    torch.testing.assert_close(in_prompt(chosen), case["output_tokens"], atol=1e-5 * largest, rtol=0)


def test_without_repeats_the_next_best_tokens_stay():
    case = load("prumerge_plus_fixed_1_8")
    official = case["selected_indices"][0].tolist()
    assert len(set(official)) == 135
    chosen = create_pruner("prumerge", plus=True).select(tokens_of(case), 145)
    ours = (chosen.sequence[0, :-1] - 1).tolist()
    assert len(set(ours)) == 144
    assert set(official) < set(ours)
    rest = sorted(set(range(576)) - set(official), key=lambda i: -float(case["cls_attn"][0, i]))
    assert set(ours) - set(official) == set(rest[:9])


def test_tokens_at_even_steps_are_the_code_s_where_these_divide():
    for number in (72, 144, 36, 192):
        step = 576 // number
        assert even(576, number).tolist() == list(range(step // 2, 575, step))
    assert even(10, 3).tolist() == [1, 5, 8]
    assert even(10, 0).tolist() == []


def test_spread_by_hand():
    attention = torch.tensor([[0.1, 0.9, 0.2, 0.8, 0.3, 0.7, 0.0, 0.0]])
    # Of four, 2 and 6 are at even steps. Others by attention are 1 and 3, then the steps.
    assert spread_once(attention, 4).tolist() == [[1, 3, 2, 6]]
    attention[0, 2] = 1.0  # the best is one of the steps; it comes where attention has it
    assert spread_once(attention, 4).tolist() == [[2, 1, 3, 6]]
    # 9 of one: int(9 / 1) // 3 = 3; the last token is never a step.
    assert spread_by_ratio(torch.tensor([[3]]), 10).tolist() == [[3, 0, 6]]


def test_merging_by_hand():
    features = torch.tensor([[[1.0], [2], [3], [4], [5]]])
    keys = torch.tensor([[[1.0, 0], [2, 0.1], [0, 1], [0.1, 1], [-1, -1]]])
    attention = torch.tensor([[0.5, 0.1, 0.2, 0.1, 0.1]])
    made, places = merged(features, keys, attention, torch.tensor([[0, 2]]), 1)
    assert places.tolist() == [[0, 2, 1]]
    torch.testing.assert_close(made[0, :, 0], torch.tensor([1 + 0.2, 3 + 0.4, 0.2 + 0.4 + 0.5]))
    # What comes again has the first free place, whose token is in no sum; then its neighbour is itself.
    made, places = merged(features, keys, attention, torch.tensor([[0, 2, 0]]), 0)
    assert places.tolist() == [[0, 2, 1, 3]]
    torch.testing.assert_close(made[0, :, 0], torch.tensor([1, 3, 1, 0.4 + 0.5]))
    made, _ = merged(features, keys, attention, torch.tensor([[0, 2, 0]]), 1)
    torch.testing.assert_close(made[0, :, 0], torch.tensor([1 + 0.5, 3 + 0.4, 1 + 0.5, 0.4 + 0.5]))


def test_rows_keep_as_many_as_their_own_attention_says():
    generator = torch.Generator().manual_seed(0)
    peaks = torch.rand(2, 1, 40, generator=generator)
    peaks[0, 0, :5] += 9
    peaks[1, 0, 7:9] += 9
    attention = peaks / peaks.sum(2, keepdim=True)
    x = torch.randn(2, 40, 3, generator=generator)
    tokens = VisualTokens(x, {"cls_attention": attention, "keys": x})
    assert high_outliers(attention[:, 0]).tolist() == [5, 2]
    pruner = create_pruner("prumerge", count="outliers")
    chosen = pruner.select(tokens, 40)
    assert chosen.there.sum(1).tolist() == [6, 3]
    assert pruner.select(tokens, 4).there.sum(1).tolist() == [4, 3]  # the budget is a bound
    assert chosen.sequence[1].tolist() == [*sorted((7, 8), key=lambda i: -float(attention[1, 0, i])), 0, -1, -1, -1]


def test_on_a_model():
    model, processor = tiny_llava("sdpa"), tiny_processor()
    inputs = ask(processor, 1, 1)
    layer = model.base_model.vision_tower.encoder.layers[-1]
    with tp.prune(model, processor, "prumerge", keep_tokens=7, neighbours=3, trace_features=True) as trace:
        model(**inputs, logits_to_keep=1)
    tower = model.base_model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    normed = layer.layer_norm1(tower[-2])
    query, keys = layer.self_attn.q_proj(normed[:, :1]), layer.self_attn.k_proj(normed)
    attention = (query @ keys.mT / keys.shape[2] ** 0.5).softmax(-1)[:, 0, 1:]
    picks = attention.argsort(dim=1, descending=True, stable=True)[:, :6]
    states = tower[model.config.vision_feature_layer][:, 1:]
    made, _ = merged(states, keys[:, 1:], attention, picks, 3)
    wanted = model.base_model.multi_modal_projector(made)
    torch.testing.assert_close(trace.last.selection.merged, wanted, atol=1e-5, rtol=1e-4)
    assert trace.counts == [(25, 7)] * 2
    with tp.prune(model, processor, "prumerge", count="outliers") as trace:
        model(**inputs, logits_to_keep=1)
    assert [after for _, after in trace.counts] == [max(1, n) + 1 for n in high_outliers(attention).tolist()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": "all"}, "Allowed: budget, outliers"),
        ({"neighbours": -1}, "neighbours.*at least 0"),
        ({"repeat": True}, "repeat.*plus=True and count='budget'"),
        ({"repeat": True, "plus": True, "count": "outliers"}, "repeat.*plus=True and count='budget'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        create_pruner("prumerge", **options)
