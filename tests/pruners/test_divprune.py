import pytest
import torch
from golden_data import cases, load, orders

from tokenprune import VisualTokens, create_pruner

DIVPRUNE = create_pruner("divprune")


def literal(features, k):
    """The rule in float64, one distance after another."""
    x = features.double() / features.double().norm(dim=1, keepdim=True)
    distance = 1 - x @ x.T
    others = distance + torch.diag(torch.full((len(x),), torch.inf))
    picks = [int(others.min(1).values.argmax())]
    while len(picks) < k:
        nearest = distance[:, picks].min(1).values
        nearest[picks] = -torch.inf
        picks.append(int(nearest.argmax()))
    return picks


@pytest.mark.parametrize("name", [c for c in cases("divprune_*") if c.startswith("divprune_n")])
def test_picks_are_those_of_the_official_code(name):
    case = load(name)
    for k, order in orders(case):
        assert torch.equal(DIVPRUNE.select(VisualTokens(case["features"][None]), k).order, order), k


def test_kept_rows_are_those_of_the_official_sequence():
    case = load("divprune_sequence_level")
    kept = case["kept_in_sequence_order"].long()
    assert torch.equal(DIVPRUNE.select(VisualTokens(case["features"][None]), len(kept)).keep[0], kept)


def test_duplicates_are_picked_once():
    case = load("divprune_duplicates_d64")
    official = case["order_T550"].tolist()
    repeats = len(official) - len(set(official))
    assert repeats == 34
    ours = DIVPRUNE.select(VisualTokens(case["features"][None]), 550).order[0].tolist()
    assert len(set(ours)) == 550
    distinct = len(torch.unique(case["features"], dim=0))
    assert len(torch.unique(case["features"][ours[:distinct]], dim=0)) == distinct  # twins come last


def test_literal_transcription():
    features = torch.randn(60, 12, generator=torch.Generator().manual_seed(0))
    assert DIVPRUNE.select(VisualTokens(features[None]), 25).order[0].tolist() == literal(features, 25)


def test_by_hand():
    # Angles 0, 10, 90, 200 degrees: 200 has the farthest neighbour; then 0 and 10 are farther from it than 90 is.
    angle = torch.deg2rad(torch.tensor([0.0, 10.0, 90.0, 200.0]))
    features = torch.stack([angle.cos(), angle.sin()], 1)[None]
    assert DIVPRUNE.select(VisualTokens(features), 3).order[0].tolist() == [3, 1, 2]


def test_half_precision_features_keep_nearly_the_same_set():
    case = load("divprune_n576_d64")
    whole, half = (
        set(DIVPRUNE.select(VisualTokens(x[None]), 128).keep[0].tolist())
        for x in (case["features"], case["features"].half())
    )
    assert len(whole & half) >= 0.95 * 128
