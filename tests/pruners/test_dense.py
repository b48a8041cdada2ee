"""Rows of unequal lengths, whatever a method returns."""

from dataclasses import dataclass

import torch

from tokenprune import TokenSelection, VisualTokens
from tokenprune.pruners.dense import DensePruner


@dataclass(frozen=True, kw_only=True)
class Backwards(DensePruner):
    """Keeps the last tokens, the last first, and makes features of them."""

    def _choose(self, tokens, k):
        assert tokens.valid is None
        keep = torch.arange(tokens.num_tokens - k, tokens.num_tokens).repeat(tokens.batch_size, 1)
        merged = tokens.features[:, -k:] + tokens.signals["keys"][:, -k:] + tokens.signals["cls_attention"].mT[:, -k:]
        return TokenSelection(keep, tokens.num_tokens, merged=merged, sequence=keep.flip(1))


@dataclass(frozen=True, kw_only=True)
class IntoFirst(DensePruner):
    """Keeps the first tokens, and folds all others into the very first."""

    def _choose(self, tokens, k):
        own = torch.arange(tokens.num_tokens).repeat(tokens.batch_size, 1)
        return TokenSelection(own[:, :k], tokens.num_tokens, into=own.where(own < k, 0))


VALID = torch.tensor([[True, True, True, True], [False, True, True, True], [True, True, False, False]])
FEATURES = torch.arange(12.0).view(3, 4, 1)
TOKENS = VisualTokens(
    FEATURES, {"keys": 100 * FEATURES, "cls_attention": 1000 * FEATURES.mT}, valid=VALID, row_ids=torch.arange(3)
)


def test_choices_are_in_the_row_s_own_numbering():
    chosen = Backwards().select(TOKENS, 2)
    assert chosen.keep.tolist() == [[2, 3], [2, 3], [0, 1]]  # of two tokens both stay, as they are
    assert chosen.sequence.tolist() == [[3, 2], [3, 2], [0, 1]]
    assert chosen.merged[:, :, 0].tolist() == [[2202, 3303], [6606, 7707], [8, 9]]


def test_folds_are_in_the_row_s_own_numbering():
    chosen = IntoFirst().select(TOKENS, 1)
    assert chosen.keep.tolist() == [[0], [1], [0]]
    assert chosen.into.tolist() == [[0, 0, 0, 0], [-1, 1, 1, 1], [0, 0, -1, -1]]
    assert chosen.apply(FEATURES)[:, 0, 0].tolist() == [1.5, 6.0, 8.5]
    both = IntoFirst().select(TOKENS, 2)
    assert both.into.tolist() == [[0, 1, 0, 0], [-1, 1, 2, 1], [0, 1, -1, -1]]


def test_all_tokens_stay_as_they_are():
    chosen = Backwards().select(VisualTokens(FEATURES, {}), 4)
    assert chosen.keep.tolist() == [[0, 1, 2, 3]] * 3
    assert chosen.merged is chosen.sequence is None


def test_if_all_patches_can_stay_cls_does_not():
    special = torch.tensor([True, False, False, False])
    chosen = Backwards().select(VisualTokens(FEATURES, {}, special=special), 3)
    assert chosen.keep.tolist() == [[1, 2, 3]] * 3
    assert chosen.merged is chosen.sequence is None
