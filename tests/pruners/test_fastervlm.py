import pytest
import torch
from golden_data import cases, load

from tokenprune import VisualTokens, create_pruner

FASTERVLM = create_pruner("fastervlm")


@pytest.mark.parametrize("name", cases("fastervlm_*"))
def test_kept_tokens_are_those_of_the_official_code(name):
    case = load(name)
    tokens = VisualTokens(case["image_features"], {"cls_attention": case["cls_attention"]})
    kept = {int(key.removeprefix("kept_T")): value.long() for key, value in case.items() if key.startswith("kept_T")}
    assert len(kept) == 8
    for k, official in kept.items():
        assert torch.equal(FASTERVLM.select(tokens, k).keep, official), k


def test_by_hand():
    # Means over the heads: 0.3, 0.1, 0.3, 0.3; of the three that are equal, the first two.
    attention = torch.tensor([[[0.5, 0.0, 0.25, 0.375], [0.1, 0.2, 0.35, 0.225]]])
    tokens = VisualTokens(torch.zeros(1, 4, 2), {"cls_attention": attention})
    assert FASTERVLM.select(tokens, 3).keep.tolist() == [[0, 2, 3]]
    ties = VisualTokens(torch.zeros(1, 5, 2), {"cls_attention": torch.ones(1, 2, 5)})
    assert FASTERVLM.select(ties, 2).keep.tolist() == [[0, 1]]


def test_without_cls_what_patches_receive_counts():
    received = torch.tensor([[[0.1, 0.6, 0.3]]])
    features = torch.zeros(1, 3, 2)
    assert FASTERVLM.select(VisualTokens(features, {"received_attention": received}), 1).keep.tolist() == [[1]]
    both = {"received_attention": received, "cls_attention": received.flip(2)}
    assert FASTERVLM.select(VisualTokens(features, both), 2).keep.tolist() == [[0, 1]]
