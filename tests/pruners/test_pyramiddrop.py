import dataclasses
from itertools import pairwise

import pytest
import torch
from golden_data import load

from tokenprune import Budget, VisualTokens, create_pruner
from tokenprune.core.errors import BudgetError, ConfigError
from tokenprune.core.signals import TextAttention
from tokenprune.core.sizes import ModelSpec, TransformerSpec

SPEC = ModelSpec(TransformerSpec(32, 8, 16, 2, 2, 4, 3), vocabulary=10, visual_tokens=576)
PYRAMIDDROP = create_pruner("pyramiddrop")


def deep(layers):
    return dataclasses.replace(SPEC, llm=dataclasses.replace(SPEC.llm, layers=layers))


def keep(attention, k):
    """What is kept of attention (B, H, Q, N)."""
    tokens = VisualTokens(torch.zeros(len(attention), attention.shape[3], 2), {"text_attention": attention})
    return PYRAMIDDROP.select(tokens, k).keep


@pytest.mark.parametrize("stage", [2, 4, 6])
def test_kept_tokens_are_those_of_the_official_code(stage):
    case = load("pdrop_tiny_e2e")
    score, kept = case[f"score_after{stage}"], case[f"kept_rel_after{stage}"].long()
    assert torch.equal(keep(score[None, None, None], len(kept))[0], kept)


def test_counts_are_those_of_the_official_run():
    case = load("pdrop_tiny_e2e")
    official = tuple(len(case[f"kept_rel_after{stage}"]) for stage in (2, 4, 6))
    assert PYRAMIDDROP.schedule(SPEC, Budget(keep_ratio=0.125), len(case["score_after2"])) == official


def test_by_hand():
    first_head = torch.tensor([[[0.9, 0.0, 0.0, 0.0], [0.1, 0.5, 0.1, 0.3]]])  # two queries: the last one counts
    second_head = torch.tensor([[[0.0, 0.9, 0.0, 0.0], [0.2, 0.0, 0.5, 0.3]]])  # means: 0.15, 0.25, 0.3, 0.3
    attention = torch.stack([first_head, second_head], 1)
    assert [keep(attention, k).tolist() for k in (1, 2, 3)] == [[[2]], [[2, 3]], [[1, 2, 3]]]


def test_literal_transcription():
    attention = torch.randn(3, 4, 2, 20, generator=torch.Generator().manual_seed(0)).softmax(-1)
    for row, kept in zip(attention, keep(attention, 7).tolist(), strict=True):
        scores = [sum(float(head[-1, token]) for head in row) / 4 for token in range(20)]
        assert kept == sorted(sorted(range(20), key=lambda token: -scores[token])[:7])


def test_the_published_schedule():
    def schedule(total):
        return PYRAMIDDROP.schedule(SPEC, Budget(keep_ratio=0.125), total)

    assert schedule(576) == (288, 144, 72)
    assert schedule(2880) == (1440, 720, 360)
    for total in range(8, 4000, 8):
        assert schedule(total) == (total // 2, total // 4, total // 8)
    assert PYRAMIDDROP.schedule(SPEC, Budget(average_tokens=270), 576) == (288, 144, 72)  # 46.9 %


@pytest.mark.parametrize("ratios", [(0.5, 0.25, 0.125), (0.9, 0.3), (0.1,), (0.7, 0.6, 0.5, 0.05)])
@pytest.mark.parametrize("total", [1, 25, 144, 577])
def test_any_budget_gives_a_falling_schedule_that_grows_with_it(ratios, total):
    pruner = create_pruner("pyramiddrop", ratios=ratios)
    schedules = [pruner.counts(SPEC, keep, total) for keep in range(total + 1)]
    assert set(schedules[0]) == {0}
    assert set(schedules[-1]) == {total}
    for keep, counts in enumerate(schedules):
        assert len(counts) == len(ratios)
        assert counts[-1] == keep
        assert (total, *counts) == tuple(sorted((total, *counts), reverse=True))
    for less, more in pairwise(schedules):
        assert all(a <= b for a, b in zip(less, more, strict=True))


def test_nothing_may_arrive():
    assert PYRAMIDDROP.counts(SPEC, 0, 0) == (0, 0, 0)


def test_a_budget_that_the_first_layers_spend_is_refused():
    with pytest.raises(BudgetError, match="spend 144 of 576"):
        PYRAMIDDROP.schedule(SPEC, Budget(average_tokens=144), 576)
    early = create_pruner("pyramiddrop", layers=(2, 8, 16))
    counts = early.schedule(SPEC, Budget(average_tokens=144), 576)
    assert (
        early.plan(SPEC, counts, 576).mean_tokens
        >= 144
        > early.plan(SPEC, early.counts(SPEC, counts[-1] - 1, 576), 576).mean_tokens
    )


def test_layers_follow_the_depth_of_the_model():
    def layers(pruner, depth):
        return [step.stage.layer for step in pruner.steps(deep(depth))]

    assert layers(PYRAMIDDROP, 32) == [8, 16, 24]
    assert layers(PYRAMIDDROP, 30) == [7, 15, 22]
    assert layers(PYRAMIDDROP, 4) == [1, 2, 3]
    assert layers(create_pruner("pyramiddrop", ratios=[0.3]), 32) == [16]
    assert layers(create_pruner("pyramiddrop", layers=[2, 5, 30]), 32) == [2, 5, 30]
    for pruner, depth in ((PYRAMIDDROP, 3), (create_pruner("pyramiddrop", layers=[2, 5, 32]), 32)):
        with pytest.raises(ConfigError, match=f"allowed: 1 to {depth - 1}"):
            pruner.steps(deep(depth))


def test_the_stages_own_layer_scores_and_positions_are_packed():
    assert PYRAMIDDROP.requires == {TextAttention("own")}
    assert {step.positions for step in PYRAMIDDROP.steps(deep(32))} == {"repacked"}
    assert {step.positions for step in PYRAMIDDROP.steps(dataclasses.replace(deep(32), position_axes=3))} == {
        "original"
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": []}, "ratios"),
        ({"ratios": [0.5, 0.5, 0.1]}, "falling"),
        ({"ratios": [1.0, 0.5, 0.1]}, "falling"),
        ({"ratios": [0.5, 0.1, 0.0]}, "falling"),
        ({"ratios": [0.5, float("nan"), 0.1]}, "falling"),
        ({"layers": [8, 8, 16]}, "rising"),
        ({"layers": [16, 8, 24]}, "rising"),
        ({"layers": [8, 16]}, "2 layers and 3 ratios"),
        ({"layers": []}, "0 layers"),
        ({"layers": 8}, "layers must be a list"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        create_pruner("pyramiddrop", **options)
