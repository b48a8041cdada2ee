"""``PrunerContract`` holds for pruners whose stages are inside the vision tower, and catches those that break it."""

import pytest

from tokenprune.core.errors import TokenPruneError
from tokenprune.core.selection import TokenSelection
from tokenprune.core.signals import TowerAttention, TowerKeys
from tokenprune.testing import PrunerContract
from tokenprune.testing.families import families
from tokenprune.testing.pruners import Early


class ByKeys(Early):
    """Scores by features and the keys of the layer before."""

    requires = frozenset({TowerKeys()})

    def score(self, tokens):
        return tokens.features.float().norm(dim=-1) + tokens.signal(TowerKeys()).norm(dim=-1)


class TestInTheTower(PrunerContract):
    pruner = "early"
    families = ("llava", "paligemma", "gemma3", "qwen2_5_vl")

    def create(self, **more):
        return ByKeys(layers=(1, 2), **more)


class TestByCLS(PrunerContract):
    """A family whose tower has no CLS token says so."""

    pruner = "early"
    families = ("llava", "paligemma")

    def create(self, **more):
        class ByCLS(Early):
            requires = frozenset({TowerAttention("cls")})

            def score(self, tokens):
                return tokens.signal(TowerAttention("cls")).mean(1)

        return ByCLS(**more)


def test_a_pruner_that_folds_what_it_drops_is_not_one_that_masks():
    class Folds(Early):
        def _select(self, tokens, k):
            kept = super()._select(tokens, k).keep
            into = kept[:, :1].expand(-1, tokens.num_tokens).scatter(1, kept, kept)
            return TokenSelection(kept, tokens.num_tokens, into=into)

    class Contract(PrunerContract):
        pruner = "early"

        def create(self, **more):
            return Folds(**more)

    with pytest.raises((AssertionError, TokenPruneError)):
        Contract().test_dropping_is_masking(families()["llava"], "sdpa")
