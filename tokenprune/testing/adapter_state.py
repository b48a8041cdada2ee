"""What an adapter says and leaves: the part of ``AdapterContract`` that is not about logits."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch

import tokenprune as tp
from tokenprune.core.budget import Budget
from tokenprune.core.errors import ModelError
from tokenprune.core.sample import Sample
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.session import Session
from tokenprune.pruners.none import NoPruning
from tokenprune.testing.families import Family
from tokenprune.testing.pictures import picture
from tokenprune.testing.pruners import Project, Within

LAYERS = ("EncoderLayer", "DecoderLayer", "VisionBlock", "VisionLayer", "AttentionLayer")  # ends of the classes' names


class AdapterState:
    """Promises of an adapter: it says what is so of its model, and leaves nothing on it.

    Attributes:
        family: a tiny model of the family, and how to ask it.
    """

    family: ClassVar[Family]

    def test_it_says_what_it_serves(self) -> None:
        """The adapter names types of models, a checkpoint and its signals."""
        adapter = type(adapter_for(*self.family.build("sdpa")))
        assert adapter.model_types
        assert "/" in adapter.example
        assert adapter.on_offer()

    @pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma's processor
    def test_samples_are_prepared(self) -> None:
        """Questions of samples come back from the prompts that are made of them, in each scope."""
        model, processor = self.family.build("sdpa")
        sizes = {"is there a star ?": (80, 80), "where ?": (80, 24)}
        samples = [Sample.of(picture(1, *size), text, "yes", id=text) for text, size in sizes.items()]
        for scope in type(adapter_for(model, processor)).scopes:
            session = Session(adapter_for(model, processor, scope=scope))
            prepared = session.prepare(samples)
            assert session.questions(prepared.inputs) == prepared.questions == list(sizes)
            assert prepared.inputs["attention_mask"][:, -1].tolist() == [1, 1]
            assert prepared.inputs["attention_mask"].min() == 0  # of different lengths, padded on the left
            pruned = session.prune_inputs(prepared.inputs, Project(), Budget(keep_tokens=7))
            assert pruned.entered == [7, 7]
            assert len(session.generate(pruned, max_new_tokens=2).output) == 2

    def test_a_processor_of_another_model_is_refused(self) -> None:
        """A processor whose image token is another one than the model's is one sentence."""
        model, processor = self.family.build("sdpa")
        ours, other = model.config.image_token_id, copy.deepcopy(processor)
        other.image_token_id = other.tokenizer.image_token_id = 77
        said = f"not this model's processor: images are token 77 there, token {ours} here"
        with pytest.raises(ModelError, match=said):
            adapter_for(model, other)

    def test_encoding_once_is_enough(self, attention: str) -> None:
        """What was encoded can be pruned without encoding it again."""
        model, processor = self.family.build(attention)
        session, inputs = Session(adapter_for(model, processor)), self.family.ask(processor, 1, 2)
        encoded = session.encode(inputs)
        reused = session.prune_inputs(inputs, Project(), Budget(keep_tokens=5), encoded=encoded)
        direct = session.prune_inputs(inputs, Project(), Budget(keep_tokens=5))
        assert reused.seconds["vision"] == 0 < direct.seconds["vision"]
        assert torch.equal(*(session.prefill(each.inputs).output.logits for each in (reused, direct)))

    def test_nothing_is_left_on_the_model(self) -> None:
        """Hooks, attributes and configs of each module are what they were."""
        model, processor = self.family.build("sdpa")
        inputs = self.family.ask(processor, 1, 2)
        model.generate(**inputs, max_new_tokens=2)
        before = state(model)
        session = Session(adapter_for(model, processor))
        session.prefill(session.prune_inputs(inputs, Project(), Budget(keep_tokens=5)))
        with torch.no_grad(), tp.prune(model, processor, Project(), keep_tokens=5):
            model(**self.family.ask(processor, 1))
            model.generate(**inputs, max_new_tokens=2)
            with tp.prune(model, processor, Within(), keep_tokens=5):
                model.generate(**inputs, max_new_tokens=2)
        assert state(model) == before

    def test_the_spec_counts_what_runs(self) -> None:
        """Layers, visual tokens, widths and vocabulary of the spec are the model's."""
        model, processor = self.family.build("sdpa")
        session = Session(adapter_for(model, processor))
        spec, inputs = session.adapter.spec, self.family.ask(processor, 1, **self.family.nominal)
        ran: list[str] = []
        handles = [
            module.register_forward_hook(lambda module, args, output: ran.append(type(module).__name__))
            for module in model.modules()
            if type(module).__name__.endswith(LAYERS)
        ]
        encoded = session.encode(inputs)
        assert spec.vision is not None
        assert len(ran) == spec.vision.layers
        session.prefill(session.prune_inputs(inputs, NoPruning()).inputs)
        assert len(ran) == 2 * spec.vision.layers + spec.llm.layers
        for handle in handles:
            handle.remove()
        assert encoded.layout.free_tokens() == [spec.visual_tokens]
        assert encoded.features.shape[1] == spec.llm.width == spec.projector[-1]
        assert spec.vocabulary == model.lm_head.weight.shape[0]


def state(model: Any) -> tuple[Any, ...]:
    """Hooks, attributes and config of a model, to be compared; Qwen's ``rope_deltas`` are among the attributes."""
    modules = dict(model.named_modules())
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in modules.values()]
    base = {name: repr(value) for name, value in vars(model.base_model).items() if not name.startswith("_")}
    return hooks, [set(vars(module)) for module in modules.values()], base, str(model.config)
