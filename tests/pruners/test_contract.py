"""What every pruner promises, whoever wrote it: parametrised over the registry."""

import pytest
import torch

from tokenprune import Signal, VisualTokens, create_pruner
from tokenprune.core.errors import BudgetError, SelectionError
from tokenprune.pruners.base import PRUNERS
from tokenprune.testing.tokens import D, N, make

GRID_ONLY = {"pooling", "resize"}  # refuse rows that are no grid
pytestmark = pytest.mark.parametrize("name", PRUNERS.names())


def row(tokens, index):
    cut = slice(index, index + 1)
    valid = None if tokens.valid is None else tokens.valid[cut]
    signals = {k: v[cut] for k, v in tokens.signals.items()}
    return VisualTokens(tokens.features[cut], signals, grid=tokens.grid, valid=valid)


def shortened(tokens, n):
    """The first n visual tokens alone; those that entered the LLM remain the same."""
    last = {Signal.CLS_ATTENTION, Signal.RECEIVED_ATTENTION, Signal.TEXT_ATTENTION, Signal.ROPE_SIMILARITY}
    second = {Signal.CLIP_IMAGE_EMBEDS, Signal.KEYS, Signal.VISION_HIDDEN, Signal.NORMED_HIDDEN}
    second |= {Signal.RESIZED_FEATURES, Signal.EVIDENCE}
    cut = dict(tokens.signals)
    cut |= {name: cut[name][..., :n] for name in last} | {name: cut[name][:, :n] for name in second}
    return VisualTokens(tokens.features[:, :n], cut)


@pytest.mark.parametrize("k", [1, 7, N - 1, N])
def test_keeps_k_in_order_and_does_it_again(name, k):
    tokens, pruner = make(), create_pruner(name)
    first, second = pruner.select(tokens, k), create_pruner(name).select(tokens, k)
    assert first.keep.shape == (3, k)
    assert (first.keep.diff(dim=1) > 0).all()
    assert torch.equal(first.keep, second.keep)
    assert first.num_tokens == N
    if k == N:
        assert torch.equal(first.keep, torch.arange(N).expand(3, -1))


def test_rows_do_not_influence_one_another(name):
    tokens, pruner = make(), create_pruner(name)
    whole = pruner.select(tokens, 9).keep
    for index in range(3):
        assert torch.equal(whole[index], pruner.select(row(tokens, index), 9).keep[0])


def test_input_is_left_as_it_was(name):
    tokens = make()
    before = [tokens.features.clone(), *(v.clone() for v in tokens.signals.values())]
    create_pruner(name).select(tokens, 9)
    assert all(torch.equal(a, b) for a, b in zip(before, [tokens.features, *tokens.signals.values()], strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(name, dtype):
    assert create_pruner(name).select(make(dtype=dtype), 9).keep.shape == (3, 9)


@pytest.mark.parametrize("kind", ["duplicates", "zeros", "rank_two", "huge", "tiny"])
def test_degenerate_features_still_give_k_distinct_tokens(name, kind):
    base = torch.randn(3, N, D, generator=torch.Generator().manual_seed(1))
    features = {
        "duplicates": base[:, :1].expand(-1, N, -1),
        "zeros": torch.zeros(3, N, D),
        "rank_two": base[:, :, :2] @ base[:, :2],
        "huge": base * 1e18,
        "tiny": base * 1e-18,
    }[kind]
    assert create_pruner(name).select(make(features=features), 20).keep.shape == (3, 20)


def test_relevance_without_information(name):
    assert create_pruner(name).select(make(constant=True), 20).keep.shape == (3, 20)


def test_one_token(name):
    assert create_pruner(name).select(make(n=1), 1).keep.tolist() == [[0]] * 3


def test_padding_is_never_kept_and_does_not_change_the_choice(name):
    valid = torch.ones(3, N, dtype=torch.bool)
    valid[1, 20:] = False
    tokens, pruner = make(valid=valid), create_pruner(name)
    if name in GRID_ONLY:
        with pytest.raises(SelectionError, match="grid"):
            pruner.select(tokens, 9)
        return
    keep = pruner.select(tokens, 9).keep
    alone = row(make(valid=torch.ones(3, N, dtype=torch.bool)), 0)
    assert torch.equal(keep[0], pruner.select(alone, 9).keep[0])
    assert torch.equal(keep[1], pruner.select(shortened(row(make(), 1), 20), 9).keep[0])
    with pytest.raises(BudgetError, match="20"):
        pruner.select(tokens, 21)


@pytest.mark.parametrize("k", [0, -1, N + 1])
def test_impossible_budgets(name, k):
    with pytest.raises(BudgetError, match=str(N)):
        create_pruner(name).select(make(), k)


def test_features_must_be_finite(name):
    broken = torch.randn(1, N, D)
    broken[0, 3, 2] = torch.nan
    with pytest.raises(SelectionError, match="finite"):
        create_pruner(name).select(make(batch=1, features=broken), 4)
