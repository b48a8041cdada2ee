"""``PrunerContract`` catches pruners that break a promise: each of these breaks one."""

import pytest
import torch

from tokenprune.core.errors import TokenPruneError
from tokenprune.core.selection import TokenSelection
from tokenprune.pruners.base import Pruner, ScorePruner, create_pruner
from tokenprune.testing import PrunerContract
from tokenprune.testing.families import families
from tokenprune.testing.pruners import Project

LLAVA = families("llava")["llava"]
SEEN = {}


class Unseeded(ScorePruner):
    def score(self, tokens):
        return torch.rand(tokens.features.shape[:2])


class OfTheBatch(ScorePruner):
    def score(self, tokens):
        return (tokens.features - tokens.features.mean(0)).norm(dim=-1)


class Remembering(Project):
    def score(self, tokens):
        SEEN.setdefault(id(self), tokens.features.float())
        return super().score(tokens) + SEEN[id(self)].sum(-1).cumsum(-1)


class Writing(Project):
    def score(self, tokens):
        tokens.features.mul_(2)
        return super().score(tokens)


class Fewer(Pruner):
    def _select(self, tokens, k):
        keep = torch.arange(max(1, k - 1)).expand(len(tokens.features), -1)
        return TokenSelection(keep.contiguous(), tokens.num_tokens)


class Backwards(Pruner):
    def _select(self, tokens, k):
        keep = torch.arange(k).flip(0).expand(len(tokens.features), -1)
        return TokenSelection(keep.contiguous(), tokens.num_tokens)


class Padded(Pruner):
    """Keeps the last columns, whatever is there."""

    def _select(self, tokens, k):
        keep = torch.arange(tokens.num_tokens - k, tokens.num_tokens).expand(len(tokens.features), -1)
        return TokenSelection(keep.contiguous(), tokens.num_tokens)


class FloatOnly(ScorePruner):
    def score(self, tokens):
        return tokens.features @ torch.ones(tokens.features.shape[-1])


class OfThePrecision(Project):
    """Computes in whatever a caller has set, around what ``Pruner.select`` sees to."""

    def select(self, tokens, k):
        scores = tokens.features @ torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
        return TokenSelection.from_order(scores.sum(-1).argsort(1)[:, :k], tokens.num_tokens, scores.sum(-1))


class OneSurvivor(ScorePruner):
    """Finds no tokens to speak of where all are the same."""

    def score(self, tokens):
        assert tokens.features.std() > 0
        return tokens.features.sum(-1)


class Unbounded(Project):
    """Has no idea of an impossible budget."""

    def select(self, tokens, k):
        return self._select(tokens, max(1, min(k, tokens.num_tokens)))


BROKEN = [
    (Unseeded, "test_it_keeps_so_many_in_order_and_does_it_again", {"budget": 7}),
    (Fewer, "test_it_keeps_so_many_in_order_and_does_it_again", {"budget": 7}),
    (Backwards, "test_it_keeps_so_many_in_order_and_does_it_again", {"budget": 7}),
    (OfTheBatch, "test_rows_do_not_influence_one_another", {}),
    (Remembering, "test_nothing_is_left_on_the_pruner", {}),
    (Writing, "test_its_input_is_left_as_it_was", {}),
    (FloatOnly, "test_features_of_any_dtype", {"dtype": torch.float64}),
    (
        OfThePrecision,
        "test_what_a_caller_has_set_changes_nothing",
        {"around": lambda: torch.autocast("cpu", torch.bfloat16)},
    ),
    (OneSurvivor, "test_degenerate_features_still_give_distinct_tokens", {"kind": "zeros"}),
    (Padded, "test_padding_is_never_kept_and_does_not_change_the_choice", {}),
    (Unbounded, "test_impossible_budgets_are_refused", {"wrong": 0}),
    (OfTheBatch, "test_a_sample_alone_keeps_what_it_keeps_in_a_batch", {"family": LLAVA}),
]


def contract(make, **attributes):
    """A contract of a pruner that nobody registered."""
    return type("Contract", (PrunerContract,), {"create": lambda self, **more: make(), **attributes})()


@pytest.mark.parametrize(("broken", "promise", "case"), BROKEN, ids=lambda x: getattr(x, "__name__", ""))
def test_a_broken_pruner_is_caught(broken, promise, case):
    with pytest.raises((AssertionError, RuntimeError, TokenPruneError, pytest.fail.Exception)):
        getattr(contract(broken), promise)(**case)
    getattr(contract(Project), promise)(**case)  # one that is not broken keeps the same promise


def test_what_merges_is_not_what_is_masked():
    """Average pooling passes only where it says that it merges."""
    pooled = {"make": lambda: create_pruner("pooling"), "pruner": "pooling"}
    contract(**pooled, merges=True).test_dropping_is_masking(LLAVA, "sdpa")
    with pytest.raises(AssertionError):
        contract(**pooled).test_dropping_is_masking(LLAVA, "sdpa")


def test_families_that_cannot_have_it_are_no_cases():
    """Qwen2-VL has no CLIP tower, and cannot close gaps inside the LLM."""
    clip = contract(lambda: create_pruner("cdpruner", conditioning="clip_text"))
    gaps = contract(lambda: create_pruner("pyramiddrop", positions="repacked"))
    refused = [{name: why for name, _, why in each.everywhere() if why} for each in (clip, gaps)]
    assert "signals" in refused[0]["qwen2_vl"]
    assert "gaps" in refused[1]["qwen2_vl"]
    assert not any("llava" in each for each in refused)
