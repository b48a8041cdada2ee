"""Each source of relevance, on each family that gives it its signals; pruners are in ``PrunerContract``."""

import pytest

import tokenprune as tp
from tokenprune.conditioning.base import CONDITIONINGS
from tokenprune.core.errors import ModelError
from tokenprune.core.sample import Sample
from tokenprune.engine.loading import session_for
from tokenprune.pruners.base import create_pruner
from tokenprune.testing.families import families
from tokenprune.testing.pictures import picture
from tokenprune.testing.pruner_contract import PrunerContract
from tokenprune.testing.towers import saved_towers

# ``open_clip_text`` has its own in towers/text/test_open_clip and test_siglip, ``oracle`` needs samples.
SOURCES = sorted(set(CONDITIONINGS.names()) - {"open_clip_text", "oracle"})
ONE_GRID = {"gemma3", "llava", "mistral3", "paligemma", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"}


class Sourced(PrunerContract):
    pruner = "cdpruner"

    def __init__(self, source):
        self.options = {"conditioning": source}


POSSIBLE = [
    pytest.param(family, source, id=f"{name}-{source}")
    for source in SOURCES
    for name, family, why in Sourced(source).everywhere()
    if why is None
]


@pytest.mark.parametrize(("family", "conditioning"), POSSIBLE)
def test_each_conditioning_has_its_signals(family, conditioning):
    model, processor = family.build("sdpa")
    inputs, pruner = family.ask(processor, 1, 2), create_pruner("cdpruner", conditioning=conditioning)
    with tp.prune(model, processor, pruner, keep_tokens=8, text_tower=saved_towers()[family.tower]) as trace:
        model.generate(**inputs, max_new_tokens=1)
    assert trace.counts == family.counts(model, inputs, 8)


@pytest.mark.parametrize("name", families())
def test_the_oracle_runs_where_an_image_is_one_grid(name):
    family = families()[name]
    session = session_for(*family.build("sdpa"))
    inputs, pruner = family.ask(session.adapter.processor, 1, 1), create_pruner("cdpruner", conditioning="oracle")
    samples = [Sample.of(picture(row), "where ?", id=str(row), boxes=((8, 8, 24, 24),)) for row in range(2)]
    how = {"budget": tp.Budget(keep_tokens=8), "samples": samples}
    if name not in ONE_GRID:
        with pytest.raises(ModelError, match="needs prompts of one image whose visual tokens are one grid"):
            session.prune_inputs(inputs, pruner, **how)
    else:
        pruned = session.prune_inputs(inputs, pruner, **how)
        assert sum(len(keep) for choice in pruned.chosen for keep in choice.selection.keep) == 2 * 8


@pytest.mark.parametrize("conditioning", SOURCES)
def test_a_family_without_the_signals_says_so(conditioning):
    Sourced(conditioning).test_a_model_that_cannot_have_it_says_why()
