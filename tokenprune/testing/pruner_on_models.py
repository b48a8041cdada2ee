"""What a pruner promises on models: the part of ``PrunerContract`` that runs tiny models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch

import tokenprune as tp
from tokenprune.adapters.base import ModelAdapter
from tokenprune.adapters.cache_argument import CACHE
from tokenprune.adapters.registry import ADAPTERS
from tokenprune.core.budget import Budget
from tokenprune.core.errors import ModelError
from tokenprune.core.sizes import ModelSpec, TransformerSpec
from tokenprune.core.stages import PRE_LLM, PROJECTOR
from tokenprune.core.steps import Step
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.providers.base import Facts, missing
from tokenprune.engine.session import Session
from tokenprune.engine.tower.signals import absent
from tokenprune.engine.trace import stage_traces
from tokenprune.pruners.base import Pruner
from tokenprune.testing.checks import GENERATION, STEPS
from tokenprune.testing.families import Family, families
from tokenprune.testing.families.base import Inputs
from tokenprune.testing.masked_layers import masked_layers_logits
from tokenprune.testing.towers import saved_towers

KEEP = 8  # of each image
TINY = ModelSpec(TransformerSpec(4, 64, 128, 4, 2, 16, 3), vocabulary=100, visual_tokens=25)  # as large as the models


class OnModels:
    """Promises of a pruner on each tiny family that can have it.

    Attributes:
        pruner: name under which it is registered.
        families: names of tiny families; all of them if None.
        merges: whether what enters the LLM is made of several tokens, so that masking some is not the same.
        unmerged: options that are added where what is dropped is compared with what is masked.
    """

    pruner: ClassVar[str]
    families: Sequence[str] | None = None
    merges: bool = False
    unmerged: Mapping[str, Any] = {}

    def create(self, **more: Any) -> Pruner:
        """A new pruner with the options."""
        raise NotImplementedError

    def model_axes(self, metafunc: pytest.Metafunc) -> dict[str, Any]:
        """Parameters of the tests on models: attentions, and families that can have the pruner."""
        if "family" not in metafunc.fixturenames:
            return {}
        able = {name: family for name, family, why in self.everywhere() if why is None}
        if metafunc.function.__name__ == "test_without_a_cache_it_is_the_same" and not self.is_inside():
            able = dict(list(able.items())[:1])  # the language model does not know of it
        return {"attention": ("sdpa", "eager"), "family": able}

    def is_inside(self) -> bool:
        """Whether it has a stage inside the LLM."""
        return any(step.stage.inside for step in self.create().steps(TINY))

    def everywhere(self) -> Iterator[tuple[str, Family, str | None]]:
        """Name of each family, the family, and why it refuses the pruner: a regular expression, or None."""
        pruner, kinds = self.create(), {name: ADAPTERS.get(name) for name in ADAPTERS.names()}
        for adapter, kind in kinds.items():
            for name, family in families(adapter).items():
                why, axes = None, 1 if "repacked" in family.inside else 3
                early = PROJECTOR if "projector" in kind.places else PRE_LLM
                steps = pruner.steps(replace(TINY, position_axes=axes, early_stage=early))
                if not {step.stage.place for step in steps} <= {*kind.places}:
                    why = "has no stage"
                elif any(_lacks(step, kind) for step in steps if not step.stage.inside):
                    why = "cannot give the signals"
                elif any(step.positions not in family.inside for step in steps if step.stage.inside):
                    why = "gaps cannot be closed inside the LLM"
                if self.families is None or name in self.families:
                    yield name, family, why

    def test_dropping_is_masking(self, family: Family, attention: str) -> None:
        """What the model says is what it says of the whole prompt with the dropped tokens masked, in decoding too."""
        model, processor = family.build(attention)
        pruner, inputs = self.create(**self.unmerged), family.ask(processor, 1, 2)
        tower = saved_towers()[family.tower]
        with tp.prune(model, processor, pruner, keep_tokens=KEEP, text_tower=tower) as trace:
            out = model.generate(**inputs, **GENERATION)
        tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
        policies = [step.positions for step in pruner.steps(adapter_for(model, processor).spec)]
        if not self.merges:
            wanted = masked_layers_logits(model, inputs, trace.stages, policies, tokens, family=family)
            torch.testing.assert_close(torch.stack(out.logits, 1), wanted, atol=1e-4, rtol=0)
        assert trace.counts == family.counts(model, inputs, KEEP)
        cached = [layer.keys.shape[2] for layer in getattr(out, CACHE).layers]
        assert cached == [length + STEPS - 1 for length in in_each_layer(family, model, inputs, trace.stages)]

    def test_a_sample_alone_keeps_what_it_keeps_in_a_batch(self, family: Family) -> None:
        """A prompt keeps the same tokens by itself and beside a longer one."""
        model, processor = family.build("sdpa")
        adapter, pruner = adapter_for(model, processor, text_tower=saved_towers()[family.tower]), self.create()
        session = Session(adapter)
        keeps = []
        for inputs in (family.ask(processor, 1, 2), family.ask(processor, 1, 2, only=1)):
            pruned = session.prune_inputs(inputs, pruner, Budget(keep_tokens=KEEP))
            ran = session.prefill(pruned)
            keeps.append([stage.keep[-1] for stage in stage_traces(pruned, ran.stages, len(inputs["input_ids"]))])
        assert keeps[0] == keeps[1]
        assert len(keeps[0]) == len(pruner.steps(adapter.spec))

    def test_keeping_everything_is_the_model_bit_for_bit(self, family: Family) -> None:
        """A budget of all tokens gives the logits of the model that nothing prunes."""
        model, processor = family.build("sdpa")
        inputs, how = family.ask(processor, 1, 2), {**GENERATION, "max_new_tokens": 5}
        plain, tower = model.generate(**inputs, **how), saved_towers()[family.tower]
        with tp.prune(model, processor, self.create(), keep_ratio=1.0, text_tower=tower):
            pruned = model.generate(**inputs, **how)
        assert torch.equal(torch.stack(pruned.logits), torch.stack(plain.logits))

    def test_without_a_cache_it_is_the_same(self, family: Family) -> None:
        """Without a cache of keys and values, the model says the same."""
        model, processor = family.build("sdpa")
        inputs, tower = family.ask(processor, 1, 2), saved_towers()[family.tower]
        with tp.prune(model, processor, self.create(), keep_tokens=KEEP, text_tower=tower):
            plain = model.generate(**inputs, max_new_tokens=STEPS)
            assert torch.equal(model.generate(**inputs, max_new_tokens=STEPS, use_cache=False), plain)

    def test_a_model_that_cannot_have_it_says_why(self) -> None:
        """A family that lacks a signal, or cannot close gaps, refuses the pruner in a sentence."""
        for _, family, why in self.everywhere():
            if why is not None:
                model, processor = family.build("sdpa")
                with (
                    pytest.raises(ModelError, match=why),
                    tp.prune(model, processor, self.create(), keep_tokens=KEEP),
                ):
                    model.generate(**family.ask(processor, 1), max_new_tokens=1)


def _lacks(step: Step, adapter: type[ModelAdapter]) -> bool:
    """Whether a family cannot give the signals of a step before the LLM."""
    if step.stage.place == "tower":
        return bool(absent(step, adapter.tower))
    return bool(missing(step.selector.requires, Facts(adapter)))


def in_each_layer(family: Family, model: Any, inputs: Inputs, stages: Any) -> list[int]:
    """Tokens of the longest row in each layer: text, and the visual tokens that the stages up to it leave."""
    alive = torch.tensor([sum(row) for row in family.items(model, inputs)])
    text, longest = inputs["attention_mask"].sum(1) - alive, []
    for layer in range(model.config.get_text_config().num_hidden_layers):
        for stage in stages:
            if stage.stage.first_without == layer:
                alive = torch.tensor(stage.counts)
        longest.append(int((text + alive).max()))
    return longest
