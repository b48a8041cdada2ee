import pytest
import torch
from golden_data import load

from tokenprune import VisualTokens, create_pruner
from tokenprune.core.errors import ConfigError, SelectionError
from tokenprune.core.signals import TowerAttention
from tokenprune.pruners.vscan import windows

VSCAN = create_pruner("vscan")
QWEN = create_pruner("vscan", window=4, per_window="ceil")


def tokens_of(features, early, late, grid):
    signals = {str(TowerAttention("cls", 5 / 24)): early, str(TowerAttention("cls")): late}
    return VisualTokens(features, signals, grid=grid)


def golden(name):
    case = load(name)
    if "attention_local" in case:
        maps = (case[f"attention_{part}"][None, None] for part in ("local", "global"))
        return case, tokens_of(case["features"][None], *maps, (18, 22))
    return case, tokens_of(case["features"], case["cls_attention_local"], case["cls_attention_global"], (24, 24))


@pytest.mark.parametrize(
    ("name", "pruner", "k"), [("vscan_t96", VSCAN, 96), ("vscan_b2_t192", VSCAN, 192), ("vscan_qwen_r0p167", QWEN, 66)]
)
def test_kept_and_merged_tokens_are_those_of_the_official_code(name, pruner, k):
    case, tokens = golden(name)
    local = pruner.local(tokens, k)
    rows = len(local)
    wanted = case["local_indices"].long().view(rows, -1)
    assert torch.equal(local.nonzero()[:, 1].view(rows, -1), wanted.sort(1).values)
    chosen = pruner.select(tokens, k)
    assert torch.equal(chosen.keep, case["kept"].long().view(rows, -1))
    merged = case["merged_tokens"].view(rows, k, -1)
    largest = float(merged.abs().max())
    torch.testing.assert_close(chosen.apply(tokens.features), merged, atol=2e-6 * largest, rtol=0)
    if "assignment" in case:
        dropped = chosen.into[~chosen.kept].view(rows, -1)
        assert torch.equal(torch.searchsorted(chosen.keep, dropped), case["assignment"].long())


def test_windows_by_hand():
    # 5 x 7 in windows of 2: what does not divide joins the last.
    assert windows((5, 7), 2).view(5, 7).tolist() == [
        [0, 0, 1, 1, 2, 2, 2],
        [0, 0, 1, 1, 2, 2, 2],
        [3, 3, 4, 4, 5, 5, 5],
        [3, 3, 4, 4, 5, 5, 5],
        [3, 3, 4, 4, 5, 5, 5],
    ]
    assert windows((2, 3), 6).tolist() == [0] * 6


def test_by_hand():
    # Two windows of 2 x 2, side by side; half of 4 is one early token each, then the best two of the late layer.
    early = torch.tensor([[[0.9, 0.8, 0.1, 0.2], [0.7, 0.6, 0.3, 0.4]]]).reshape(1, 1, 8)
    late = torch.tensor([[[9.0, 8, 7, 6, 5, 4, 3, 2]]])
    angle = torch.deg2rad(torch.tensor([0.0, 90, 180, 80, 5, 270, 200, 260]))
    features = torch.stack([angle.cos(), angle.sin()], 1)[None]
    pruner = create_pruner("vscan", window=2)
    chosen = pruner.select(tokens_of(features, early, late, (2, 4)), 4)
    assert chosen.keep.tolist() == [[0, 1, 2, 7]]
    assert chosen.into.tolist() == [[0, 1, 2, 1, 0, 7, 2, 7]]


def test_what_does_not_divide_goes_to_the_late_layer():
    """The official code keeps 16 * (29 // 16) + 29 = 45 of 58."""
    _, tokens = golden("vscan_t96")
    assert VSCAN.local(tokens, 58).sum() == 16
    assert VSCAN.select(tokens, 58).keep.shape == (1, 58)
    assert not VSCAN.local(tokens, 20).any()
    assert QWEN.local(tokens, 20).sum() == 10


def test_without_a_grid_it_is_refused():
    ones = torch.ones(1, 1, 6)
    with pytest.raises(SelectionError, match="vscan needs visual tokens in a grid"):
        VSCAN.select(tokens_of(torch.ones(1, 6, 2), ones, ones, None), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window.*at least 1"),
        ({"local_layer": 1.5}, r"local_layer.*\[0, 1\)"),
        ({"per_window": "round"}, "Allowed: ceil, floor"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        create_pruner("vscan", **options)
