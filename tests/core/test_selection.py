"""Selections whose rows differ, that fold tokens into others, and that order them."""

import pytest
import torch

from tokenprune.core.errors import SelectionError
from tokenprune.core.selection import TokenSelection


def indices(*rows):
    return torch.tensor(rows, dtype=torch.long)


def test_rows_may_keep_different_numbers():
    mask = torch.tensor([[True, False, True, True], [False, True, False, False]])
    selection = TokenSelection.from_mask(mask)
    assert selection.keep.tolist() == [[0, 2, 3], [1, -1, -1]]
    assert torch.equal(selection.kept, mask)
    x = torch.arange(8.0).view(2, 4, 1)
    assert selection.apply(x)[..., 0].tolist() == [[0, 2, 3], [5, 0, 0]]
    rows = TokenSelection.from_rows([torch.tensor([0, 2, 3]), torch.tensor([1])], 4)
    assert torch.equal(rows.keep, selection.keep)


def test_tokens_are_folded_into_kept_ones():
    into, weight = indices([0, 0, 3, 3, -1]), torch.tensor([[1.0, 3, 1, 1, 9]])
    x = torch.tensor([[[1.0], [5], [2], [4], [100]]])
    selection = TokenSelection(indices([0, 3]), 5, into=into)
    assert selection.apply(x).flatten().tolist() == [3, 3]
    assert TokenSelection(indices([0, 3]), 5, into=into, weight=weight).apply(x).flatten().tolist() == [4, 3]
    half = selection.apply(x.to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert selection.apply(x[..., None].expand(-1, -1, 2, 3)).shape == (1, 2, 2, 3)
    assert selection.apply(x[..., 0]).tolist() == [[3, 3]]


def test_folding_with_rows_that_differ():
    into = indices([0, 0, 0], [0, 1, 1])
    selection = TokenSelection(indices([0, -1], [0, 1]), 3, into=into)
    x = torch.tensor([[[3.0], [6], [9]], [[1], [2], [4]]])
    assert selection.apply(x)[..., 0].tolist() == [[6, 0], [1, 3]]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"into": indices([0, 1, 3, 3, -1])}, "into must name kept tokens"),
        ({"into": indices([3, 0, 3, 3, -1])}, "kept tokens into themselves"),
        ({"into": indices([0, 0, 3, 3, 7])}, "into must name kept tokens"),
        ({"into": indices([0, 0, 3])}, "into must be a long"),
        ({"weight": torch.ones(1, 5)}, "it needs into"),
        ({"into": indices([0, 0, 3, 3, -1]), "weight": -torch.ones(1, 5)}, "at least 0"),
        ({"into": indices([0, 0, 3, 3, -1]), "merged": torch.ones(1, 2, 4)}, "no merged ones"),
        ({"sequence": indices([3, 1])}, "sequence must hold the kept indices"),
    ],
)
def test_bad_selections(more, message):
    with pytest.raises(SelectionError, match=message):
        TokenSelection(indices([0, 3]), 5, **more)


@pytest.mark.parametrize("keep", [indices([-1, 1]), indices([0, -1, 2])])
def test_padding_is_at_the_end(keep):
    with pytest.raises(SelectionError, match="-1 at the end"):
        TokenSelection(keep, 5)
