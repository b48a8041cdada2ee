import pytest
import torch

from tokenprune.core.errors import SelectionError
from tokenprune.pruners.sparsevlm.raters import attention_of_raters, count_by_rank, text_raters

IMAGE = torch.tensor([[[1.0, 0], [1, 0], [0, 1]]])
TEXT = torch.tensor([[[9.0, 9], [3, 0], [0, 1], [0, 0]]])


def test_raters_by_hand():
    # Softmax of (3, 0, 0) twice and of (0, 1, 0): the means are 0.675, 0.223 and 0.101; one third is the average.
    mask = torch.tensor([[False, True, True, True]])
    assert text_raters(IMAGE, TEXT, mask).tolist() == [[False, True, False, False]]


def test_padding_neither_rates_nor_counts():
    alone = text_raters(IMAGE, TEXT[:, 1:], torch.ones(1, 3, dtype=torch.bool))
    padded = text_raters(IMAGE, TEXT, torch.tensor([[False, True, True, True]]))
    assert torch.equal(padded[:, 1:], alone)
    assert text_raters(IMAGE, TEXT, torch.ones(1, 4, dtype=torch.bool)).tolist() == [[True, False, False, False]]


@pytest.mark.parametrize("number", [1, 3, 7])
def test_if_none_is_above_average_all_are(number):
    text = torch.tensor([0.3, 0.7]).expand(1, number + 1, -1)
    mask = torch.tensor([[False] + [True] * number])
    assert torch.equal(text_raters(IMAGE, text, mask), mask)


def test_attention_of_raters_by_hand():
    attention = torch.tensor([[[[8.0, 0], [1, 3]], [[8, 8], [0, 2]], [[0, 0], [5, 1]]]])  # 3 heads, 2 rows, 2 tokens
    attention[0, 0, 0, 0] = torch.nan  # of no rater
    raters = torch.tensor([[False, True]])
    assert attention_of_raters(attention, raters).tolist() == [[[0, 0], [2, 2]]]
    assert attention_of_raters(attention, raters, heads=9).tolist() == [[[0, 0], [2, 2]]]
    assert attention_of_raters(attention, raters, heads=2).tolist() == [[[0, 0], [3, 2]]]  # not the second
    similarity = torch.tensor([[[1.0, 1], [2, 0.5]]])
    # Divided, the heads give (0.5, 6), (0, 4) and (2.5, 2).
    assert attention_of_raters(attention, raters, similarity, heads=1).tolist() == [[[0, 0], [0.5, 6]]]


def test_count_by_rank():
    block = torch.zeros(1, 6, 40)
    block[0, :3] = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    block[0, 3] = block[0, 0] + block[0, 1]
    block[0, 5] = torch.randn(40, generator=torch.Generator().manual_seed(1))  # no rater
    raters = torch.tensor([[True, True, True, True, True, False]])
    assert count_by_rank(block, raters, 2.9, 1.5) == 10  # of 3 * 2.9 + 1.5 = 10.2
    assert count_by_rank(block, raters, 50, 0) == 39  # not all
    assert count_by_rank(block[..., :3], raters, 0.5, 0) == 3  # of full rank: all
    assert count_by_rank(0 * block, raters, 2, 0) == 1
    with pytest.raises(SelectionError, match="one at a time"):
        count_by_rank(block.expand(2, -1, -1), raters.expand(2, -1), 2, 0)
