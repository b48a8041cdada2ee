"""``PrunerContract``: what every pruner promises, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from tokenprune.core.errors import BudgetError, SelectionError
from tokenprune.core.tokens import VisualTokens
from tokenprune.pruners.base import Pruner, create_pruner
from tokenprune.testing.covering import over, parametrize
from tokenprune.testing.pruner_on_models import OnModels
from tokenprune.testing.surroundings import AUTOCAST, HARMLESS
from tokenprune.testing.tokens import D, N, make, shapes

SOME, MANY = 9, 20  # of N tokens
DEGENERATE = ("duplicates", "zeros", "rank_two", "huge", "tiny")


class PrunerContract(OnModels):
    """Promises of a pruner: what it selects of random visual tokens, and what a tiny model then says.

    Subclass it as ``class TestMine(PrunerContract)`` with ``pruner = "mine"``.

    Attributes:
        pruner: name under which it is registered.
        options: with which it is made.
        budgets: how many of the 36 tokens of a row stay, each in turn.
        grid_only: whether it refuses rows that are no grid.
    """

    options: Mapping[str, Any] = {}
    budgets: Sequence[int] = (1, 7, N - 1, N)
    grid_only: bool = False

    def create(self, **more: Any) -> Pruner:
        """A new pruner with the options, and some more."""
        return create_pruner(self.pruner, **{**self.options, **more})

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Give each test its cases."""
        parametrize(metafunc, {**self.model_axes(metafunc), "budget": self.budgets, "kind": DEGENERATE})

    def test_it_keeps_so_many_in_order_and_does_it_again(self, budget: int) -> None:
        """Indices increase, are as many as the budget, and are the same of a new pruner."""
        tokens = make()
        first, second = self.create().select(tokens, budget), self.create().select(tokens, budget)
        assert first.keep.shape == (3, budget)
        assert first.keep.min() >= 0
        assert first.keep.max() < N
        assert (first.keep.diff(dim=1) > 0).all()
        assert torch.equal(first.keep, second.keep)
        assert first.num_tokens == N
        if budget == N:
            assert torch.equal(first.keep, torch.arange(N).expand(3, -1))

    def test_nothing_is_left_on_the_pruner(self) -> None:
        """A pruner that has selected other tokens selects what a new one does, and its options are the same."""
        pruner = self.create()
        pruner.select(make(features=torch.randn(3, N, D, generator=torch.Generator().manual_seed(5))), 7)
        assert repr(pruner) == repr(self.create())
        assert torch.equal(pruner.select(make(), SOME).keep, self.create().select(make(), SOME).keep)

    def test_rows_do_not_influence_one_another(self) -> None:
        """A row alone keeps what it keeps in a batch."""
        tokens, pruner = make(), self.create()
        whole = pruner.select(tokens, SOME).keep
        for index in range(3):
            assert torch.equal(whole[index], pruner.select(row(tokens, index), SOME).keep[0])

    def test_its_input_is_left_as_it_was(self) -> None:
        """Features and signals are not written to."""
        tokens = make()
        before = [tokens.features.clone(), *(value.clone() for value in tokens.signals.values())]
        self.create().select(tokens, SOME)
        now = [tokens.features, *tokens.signals.values()]
        assert all(torch.equal(a, b) for a, b in zip(before, now, strict=True))

    @over(dtype=[torch.float16, torch.bfloat16, torch.float64])
    def test_features_of_any_dtype(self, dtype: torch.dtype) -> None:
        """Half, bfloat16 and double features are selected from."""
        assert self.create().select(make(dtype=dtype), SOME).keep.shape == (3, SOME)

    @over(around={**HARMLESS, **AUTOCAST})
    def test_what_a_caller_has_set_changes_nothing(self, around: Any) -> None:
        """Autocast, another default dtype or device, and inference mode change no choice."""
        pruner, tokens = self.create(), make()
        wanted = pruner.select(tokens, SOME)
        with around():
            found = self.create().select(tokens, SOME)
        for field in ("keep", "order", "scores", "merged"):
            ours, theirs = getattr(found, field), getattr(wanted, field)
            assert ours is theirs is None or (torch.equal(ours, theirs) and ours.dtype == theirs.dtype)

    def test_degenerate_features_still_give_distinct_tokens(self, kind: str) -> None:
        """Features that are all the same, zero, of low rank, huge or tiny give as many tokens as others."""
        base = torch.randn(3, N, D, generator=torch.Generator().manual_seed(1))
        features = {
            "duplicates": base[:, :1].expand(-1, N, -1),
            "zeros": torch.zeros(3, N, D),
            "rank_two": base[:, :, :2] @ base[:, :2],
            "huge": base * 1e18,
            "tiny": base * 1e-18,
        }[kind]
        assert self.create().select(make(features=features), MANY).keep.shape == (3, MANY)

    def test_signals_that_say_nothing(self) -> None:
        """Constant signals give as many tokens as others."""
        assert self.create().select(make(constant=True), MANY).keep.shape == (3, MANY)

    def test_one_token(self) -> None:
        """A row of one token keeps it."""
        assert self.create().select(make(n=1), 1).keep.tolist() == [[0]] * 3

    def test_padding_is_never_kept_and_does_not_change_the_choice(self) -> None:
        """A row of 20 tokens and padding keeps what the 20 keep alone; a pruner of grids refuses such rows."""
        valid = torch.ones(3, N, dtype=torch.bool)
        valid[1, MANY:] = False
        tokens, pruner = make(valid=valid), self.create()
        if self.grid_only:
            with pytest.raises(SelectionError, match="grid"):
                pruner.select(tokens, SOME)
            return
        keep = pruner.select(tokens, SOME).keep
        assert keep[1].max() < MANY
        alone = row(make(valid=torch.ones(3, N, dtype=torch.bool)), 0)
        assert torch.equal(keep[0], pruner.select(alone, SOME).keep[0])
        assert torch.equal(keep[1], pruner.select(shortened(row(make(), 1), MANY), SOME).keep[0])
        with pytest.raises(BudgetError, match="20"):
            pruner.select(tokens, MANY + 1)

    @over(wrong=[0, -1, N + 1])
    def test_impossible_budgets_are_refused(self, wrong: int) -> None:
        """A budget of no token, or of more than there are, is one sentence."""
        with pytest.raises(BudgetError, match=str(N)):
            self.create().select(make(), wrong)

    def test_features_must_be_finite(self) -> None:
        """Features that are no numbers are one sentence."""
        broken = torch.randn(1, N, D)
        broken[0, 3, 2] = torch.nan
        with pytest.raises(SelectionError, match="finite"):
            self.create().select(make(batch=1, features=broken), 4)


def row(tokens: VisualTokens, index: int) -> VisualTokens:
    """One row of a batch by itself."""
    cut = slice(index, index + 1)
    valid = None if tokens.valid is None else tokens.valid[cut]
    signals = {name: value[cut] for name, value in tokens.signals.items()}
    return VisualTokens(tokens.features[cut], signals, grid=tokens.grid, valid=valid)


def shortened(tokens: VisualTokens, n: int) -> VisualTokens:
    """The first n visual tokens alone; those that entered the LLM remain the same."""
    cut = {}
    for name, value in tokens.signals.items():
        axes = shapes()[name]
        cut[name] = value.narrow(1 + axes.index("tokens"), 0, n) if "tokens" in axes else value
    return VisualTokens(tokens.features[:, :n], cut)
