"""What a stage hands on about its tokens, and how many there were at earlier stages."""

from dataclasses import dataclass, field

import pytest
import torch

import tokenprune as tp
from tokenprune.core.stages import PRE_LLM, decoder
from tokenprune.testing.families.llava import ask, shared_llava


@dataclass(frozen=True, kw_only=True)
class Labelling(tp.Pruner):
    """Keeps every other token, says of each where it was, and notes what it was told."""

    seen: list = field(default_factory=list)
    first: bool = True
    where: tuple = ()

    def stages(self, spec):
        return self.where

    def counts(self, spec, keep, total):
        return tuple(total // 2**at for at in range(1, len(self.where) + 1))

    def _select(self, tokens, k):
        self.seen.append((tokens.labels, tokens.history))
        keep = torch.arange(k).expand(tokens.batch_size, -1) * 2
        return tp.TokenSelection(keep, tokens.num_tokens, labels=1000 + keep if tokens.labels is None else None)


@pytest.mark.parametrize("first", [PRE_LLM, decoder(1)], ids=str)
def test_later_stages_find_it(first):
    model, processor = shared_llava("sdpa")
    inputs, pruner = ask(processor, 1, 1), Labelling(where=(decoder(2), decoder(3)))
    before = Labelling(where=(first,), seen=pruner.seen)
    with tp.prune(model, processor, [before, pruner], keep_tokens=3), torch.no_grad():
        model(**inputs)
    (none, start), (labels, one), (again, two) = pruner.seen
    assert none is None
    assert start == ()
    whole = torch.arange(0, 24, 2)
    assert torch.equal(labels, 1000 + whole.expand(2, -1))
    assert one == (25,)
    assert torch.equal(again, labels[:, ::2])
    assert two == (25, 12)


def test_rows_with_different_pasts_are_asked_apart():
    model, processor = shared_llava("sdpa")
    pruner = Labelling(where=(decoder(1), decoder(2)))
    with tp.prune(model, processor, pruner, keep_tokens=3), torch.no_grad():
        model(**ask(processor, 1, 2))
    assert [history for _, history in pruner.seen] == [(), (), (25,), (50,)]


def test_bad_labels_are_refused():
    with pytest.raises(tp.TokenPruneError, match="labels must be long"):
        tp.TokenSelection(torch.tensor([[0]]), 3, labels=torch.zeros(1, 1))
    with pytest.raises(tp.TokenPruneError, match=r"labels must be \(1, 3\), got \(1, 2\)"):
        tp.VisualTokens(torch.ones(1, 3, 4), labels=torch.zeros(1, 2, dtype=torch.long))
