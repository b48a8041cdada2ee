"""Which signal a pruner is given: the first of several that the family offers, with the very parameters it asks for."""

import dataclasses

import pytest
import torch

import tokenprune as tp
from tokenprune.core.errors import ModelError
from tokenprune.core.signals import OneOf, PairedImage, Signal, TextAttention, TowerAttention
from tokenprune.engine.loading import session_for
from tokenprune.pruners.base import ScorePruner
from tokenprune.testing.families import families

CLS, PATCHES = TowerAttention("cls"), TowerAttention("patches")
EITHER = OneOf(CLS, PATCHES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asks(ScorePruner):
    """Keeps what has most of one signal, and remembers which were given."""

    signal: Signal = EITHER
    given: list = dataclasses.field(default_factory=list)

    @property
    def requires(self):
        return frozenset({self.signal})

    def score(self, tokens):
        self.given.append(set(tokens.signals))
        return tokens.signal(self.signal).mean(1)


@pytest.mark.parametrize(("name", "wanted"), [("llava", CLS), ("qwen2_5_vl", PATCHES)])
def test_the_first_that_the_family_offers_is_given(name, wanted):
    family, asks = families()[name], Asks()
    model, processor = family.build("sdpa")
    inputs = family.ask(processor, 1, 2)
    keeps = []
    for pruner in (asks, Asks(signal=wanted)):
        with tp.prune(model, processor, pruner, keep_tokens=8) as trace:
            model.generate(**inputs, max_new_tokens=1)
        keeps.append(trace.stages[0].keep)
    assert keeps[0] == keeps[1]
    assert asks.given
    assert all(given == {str(wanted)} for given in asks.given)
    tokens = session_for(model, processor).visual_tokens(inputs, frozenset({EITHER}))
    alone = session_for(model, processor).visual_tokens(inputs, frozenset({wanted}))
    assert torch.equal(tokens.signal(EITHER), alone.signal(wanted))


def test_the_order_of_the_alternatives_decides():
    family, asks = families()["llava"], Asks(signal=OneOf(PATCHES, CLS))
    model, processor = family.build("sdpa")
    with tp.prune(model, processor, asks, keep_tokens=8):
        model.generate(**family.ask(processor, 1), max_new_tokens=1)
    assert asks.given == [{str(PATCHES)}]


@pytest.mark.parametrize(
    ("name", "signal", "message"),
    [
        ("mistral3", TowerAttention("cls", layer=1), r"Mistral3Adapter cannot give .* cls_attention; it offers keys"),
        ("internvl", PairedImage(), r"InternVLAdapter cannot give the signals clip_image_embeds"),
        ("qwen2_5_vl", CLS, "cannot give the signals cls_attention; .*received_attention stands in for cls_attention"),
        ("qwen2_5_vl", OneOf(CLS, TextAttention()), "cannot give the signals cls_attention or text_attention"),
    ],
)
def test_what_no_family_offers_is_refused(name, signal, message):
    """A signal of the vision tower that towers of its kind do not give, whichever layer it is of."""
    model, processor = families()[name].build("sdpa")
    with pytest.raises(ModelError, match=message), tp.prune(model, processor, Asks(signal=signal), keep_tokens=8):
        pass
    with pytest.raises(ModelError, match=message):
        session_for(model, processor).check_pruner(Asks(signal=signal))
