import pytest
import torch
from golden_data import cases, load

from tokenprune import VisualTokens, create_pruner
from tokenprune.core.errors import ConfigError


def tokens_of(features, attention):
    return VisualTokens(features, {"cls_attention": attention, "vision_hidden": features})


def literal(features, attention, k, ratio):
    """One row, a token at a time, in float64."""
    x = features.double() / features.double().norm(dim=1, keepdim=True)
    order = sorted(range(len(x)), key=lambda i: (-float(attention[i]), i))
    important = int(k * ratio)
    kept, rest = order[:important], order[important:]
    while len(rest) > k - important and k > important:
        a, b = rest[0::2], rest[1::2]
        likeness = {i: max(float(x[i] @ x[j]) for j in b) for i in a}
        a = sorted(a, key=lambda i: -likeness[i])
        rest = a[min(8, len(rest) - (k - important)) :] + b
    return sorted(kept + rest[: k - important])


@pytest.mark.parametrize("name", cases("vispruner_*"))
def test_kept_tokens_are_those_of_the_official_code(name):
    """The code's sort put the later of two equally attended tokens first, on which all further rounds depend."""
    case = load(name)
    attention = case["cls_attention"].clone()
    mean = attention.mean(1)[0]
    (first, second) = (mean == mean[411]).nonzero()[:, 0].tolist()
    assert (first, second) == (411, 513)
    attention[:, :, first] *= 1 - 1e-6
    tokens = tokens_of(case["image_features"], attention)
    kept = {key: value.long() for key, value in case.items() if key.startswith("kept_T")}
    assert len(kept) == 16
    for key, official in kept.items():
        size, ratio = key.removeprefix("kept_T").replace("p", ".").split("_r")
        pruner = create_pruner("vispruner", important_ratio=float(ratio))
        assert torch.equal(pruner.select(tokens, int(size)).keep, official), key


@pytest.mark.parametrize("k", [1, 8, 21, 34, 59])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 1.0])
def test_literal_transcription_of_any_number_of_tokens(k, ratio):
    """Among them odd numbers that are left over, at which the official code stops."""
    generator = torch.Generator().manual_seed(0)
    features, attention = torch.randn(2, 60, 6, generator=generator), torch.rand(2, 1, 60, generator=generator)
    keep = create_pruner("vispruner", important_ratio=ratio).select(tokens_of(features, attention), k).keep
    assert keep.tolist() == [literal(features[row], attention[row, 0], k, ratio) for row in range(2)]


def test_by_hand():
    # By attention 0 1 2 3 4; 0 is important. Of 1 2 | 3 4 dealt as 1 3 and 2 4, 3 is most like one of the others.
    features = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 2], [0, -1, 0]]])
    attention = torch.tensor([[[0.5, 0.4, 0.3, 0.2, 0.1]]])
    tokens = tokens_of(features, attention)
    assert create_pruner("vispruner", important_ratio=0.25).select(tokens, 4).keep.tolist() == [[0, 1, 2, 4]]


@pytest.mark.parametrize("ratio", [-0.1, 1.5, float("nan")])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ConfigError, match=r"important_ratio.*\[0, 1\]"):
        create_pruner("vispruner", important_ratio=ratio)
