"""Masks over fewer tokens than the prompt has, worked out by hand."""

import pytest
import torch

from tokenprune.engine.decoder.masks import build, mask_kind, narrow

LEAST = torch.finfo(torch.float32).min


def bools(*rows):
    return torch.tensor([[x == "1" for x in row] for row in rows])


def shown(mask):
    """Each query's row of what it sees, as ``bools`` reads it."""
    seen = mask if mask.dtype == torch.bool else mask == 0
    return [["".join(str(int(x)) for x in row) for row in head[0]] for head in seen]


def additive(mask):
    return torch.zeros(mask.shape).masked_fill(~mask, LEAST)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sdpa", "bool"),
        ("eager", "additive"),
        (None, "additive"),
        ("flash_attention_2", "padding"),
        ("flash_attention_3", "padding"),
        ("flash_attention_4", "padding"),
        ("kernels-community/flash-attn2", "padding"),
        ("kernels-community/vllm-flash-attn3", "padding"),
        ("flex_attention", None),
    ],
)
def test_kinds(name, kind):
    assert mask_kind(name) == kind


@pytest.mark.parametrize("form", [lambda mask: mask, additive], ids=["bool", "additive"])
class TestNarrow:
    def test_keeps_the_structure(self, form):
        """Rows and columns 0, 2, 3 of a mask that is neither causal nor regular."""
        mask = form(bools("1101", "0110", "1011", "1001")[None, None])
        new = narrow(mask, torch.tensor([[0, 2, 3]]), bools("111"), doubled=False)
        assert shown(new) == [["101", "111", "101"]]
        assert new.dtype == mask.dtype

    def test_hides_padding(self, form):
        mask = form(bools("111", "111", "111")[None, None])
        new = narrow(mask, torch.tensor([[0, 1], [0, 2]]), bools("11", "01"), doubled=False)
        assert shown(new) == [["11", "11"], ["01", "01"]]
        if new.is_floating_point():
            assert new[1, 0, 0, 0] == LEAST

    def test_rows_have_masks_of_their_own(self, form):
        mask = form(torch.stack([bools("100", "110", "111"), bools("100", "010", "011")])[:, None])
        new = narrow(mask, torch.tensor([[0, 2], [1, 2]]), bools("11", "11"), doubled=False)
        assert shown(new) == [["10", "11"], ["10", "11"]]

    def test_a_static_cache_has_spare_columns(self, form):
        """As many as before less the queries that are gone: those are free for what comes."""
        mask = form(bools("10000", "11000", "11100")[None, None])
        new = narrow(mask, torch.tensor([[0, 2]]), bools("11"), doubled=False)
        assert shown(new) == [["10000", "11000"]]
        if new.is_floating_point():
            assert new[0, 0, 1, 4] == LEAST

    @pytest.mark.parametrize("doubled", [False, True])
    def test_tokens_that_share_a_column(self, form, doubled):
        mask = form(torch.ones(3, 3, dtype=torch.bool).tril()[None, None])
        new = narrow(mask, torch.tensor([[0, 1, 1, 1, 2]]), bools("11111"), doubled=doubled)
        within = ["11000", "11100", "11110"] if doubled else ["11110"] * 3
        assert shown(new) == [["10000", *within, "11111"]]


def test_a_prompt():
    assert shown(build("bool", bools("0111"), 4, 0, torch.float32)) == [["0000", "0100", "0110", "0111"]]


def test_new_tokens_after_a_cache():
    mask = build("bool", bools("01111", "11111"), 2, 3, torch.float32)
    assert shown(mask) == [["01110", "01111"], ["11110", "11111"]]


def test_columns_of_a_static_cache_that_are_not_filled():
    assert shown(build("bool", bools("111111"), 2, 2, torch.float32)) == [["111000", "111100"]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_additive(dtype):
    mask = build("additive", bools("011"), 1, 2, dtype)
    assert mask.dtype == dtype
    assert mask.tolist() == [[[[torch.finfo(dtype).min, 0, 0]]]]


def test_padding():
    assert build("padding", bools("11", "11"), 1, 1, torch.float32) is None
    assert build("padding", bools("01", "11"), 1, 1, torch.float32).tolist() == [[False, True], [True, True]]


def test_a_window_counts_in_the_conversation():
    """Three slots back, the token's own included, however many of them are still there."""
    slots = torch.tensor([[0, 3, 4, 6, 7, 8]])
    mask = build("bool", bools("111111"), 2, 4, torch.float32, slots, window=3)
    assert shown(mask) == [["000110", "000111"]]
    mask = build("bool", bools("111111"), 2, 4, torch.float32, slots, window=5)
    assert shown(mask) == [["011110", "001111"]]
    assert shown(build("bool", bools("111111"), 1, 5, torch.float32, slots)) == [["111111"]]
