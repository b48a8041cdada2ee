"""``AdapterContract``: what every adapter promises of a family of models, whoever wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch

import tokenprune as tp
from tokenprune.adapters.cache_argument import cache_of
from tokenprune.core.budget import Budget
from tokenprune.core.plan import Operations
from tokenprune.engine.loading import adapter_for
from tokenprune.engine.session import Session
from tokenprune.engine.trace import stage_traces
from tokenprune.testing.adapter_state import AdapterState
from tokenprune.testing.checks import ROWS, STEPS, check_identity, check_masking, check_operations, generated
from tokenprune.testing.covering import over, parametrize
from tokenprune.testing.families import Family
from tokenprune.testing.masked_layers import masked_layers_logits
from tokenprune.testing.pictures import QUESTIONS, picture
from tokenprune.testing.pruners import Early, Project, Within, depthwise, random_plan

KEEP = 7  # of each image
PLANS = {"dop": depthwise(4, 3, 2), "early": depthwise(3, 2, 0), "any": random_plan(1)}


class AdapterContract(AdapterState):
    """Promises of an adapter: keeping all is the model itself, and dropping is masking, wherever tokens leave.

    Subclass it as ``class TestMine(AdapterContract)`` with ``family = Mine()``.

    Attributes:
        family: a tiny model of the family, and how to ask it.
        attentions: implementations of attention that it runs under; all cases under the first, some under the others.
    """

    family: ClassVar[Family]
    attentions: Sequence[str] = ("sdpa", "eager")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Give each test its cases."""
        family = self.family
        axes = {"attention": self.attentions, "scope": family.scopes, "positions": family.policies}
        parametrize(metafunc, axes)

    @over(rows=[(1,), (1, 2)])
    def test_keeping_everything_is_the_model_bit_for_bit(
        self, attention: str, scope: str, positions: Any, rows: tuple[int, ...]
    ) -> None:
        """A budget of all tokens gives the model's own logits and answers, in a forward and in ``generate``."""
        model, processor = self.family.build(attention)
        check_identity(model, processor, self.family.ask(processor, *rows), Project(positions=positions), scope)

    @over(rows=ROWS)
    def test_dropping_is_masking(self, attention: str, scope: str, positions: Any, rows: tuple[int, ...]) -> None:
        """Tokens that leave before the LLM are as if masked, in prefill and in decoding, in batches too."""
        family, (model, processor) = self.family, self.family.build(attention)
        inputs, pruner = family.ask(processor, *rows), Project(positions=positions)
        trace = check_masking(family, model, processor, inputs, pruner, scope, keep_tokens=KEEP)
        assert trace.counts == family.counts(model, inputs, KEEP)

    def test_dropping_from_a_chat_is_masking(self, attention: str) -> None:
        """Text, image, text, image, text, as the family's template puts them, beside a row of one image."""
        family, image = self.family, {"type": "image"}
        if not family.chat:
            return
        model, processor = family.build(attention)
        left, where, one, two = ({"type": "text", "text": text} for text in ("on the left", "where", *QUESTIONS[:2]))
        texts = [
            processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
            for parts in ([left, image, where, image, one], [image, two])
        ]
        images = [[picture(0, 40, 80), picture(1, 80, 40)], [picture(2, 80, 80)]]
        inputs = dict(processor(images=images, text=texts, padding=True, padding_side="left", return_tensors="pt"))
        trace = check_masking(family, model, processor, inputs, Project(), keep_tokens=KEEP)
        assert [after for _, after in trace.counts] == [2 * KEEP, KEEP]

    @over(layers=[(2,), (1, 3)], rows=[(1,), (1, 0, 2)])
    def test_dropping_inside_is_masking_from_that_layer_on(
        self, attention: str, layers: tuple[int, ...], rows: tuple[int, ...]
    ) -> None:
        """Tokens that leave at the input of a layer are as if masked from that layer on."""
        family, (model, processor) = self.family, self.family.build(attention)
        inputs: Any = family.ask(processor, *rows)
        positions: Any = family.inside[-1] if len(layers) > 1 else "original"
        pruner = Within(layers=layers, positions=positions)
        trace = check_masking(family, model, processor, inputs, pruner, keep_tokens=KEEP)
        assert trace.counts == family.counts(model, inputs, KEEP)

    @over(layers=[(1,), (0, 1)], rows=[(1,), (1, 0, 2)])
    def test_dropping_inside_the_tower_is_masking_from_that_layer_on(
        self, attention: str, positions: Any, layers: tuple[int, ...], rows: tuple[int, ...]
    ) -> None:
        """Patches that leave at the input of a layer of the vision tower, if they can, are as if masked from it on."""
        family, (model, processor) = self.family, self.family.build(attention)
        if "tower" not in adapter_for(model, processor).places:
            return
        inputs: Any = family.ask(processor, *rows)
        pruner = Early(layers=layers, positions=positions)
        trace = check_masking(family, model, processor, inputs, pruner, keep_tokens=KEEP)
        assert trace.counts == family.counts(model, inputs, KEEP)

    @over(plan=PLANS)
    def test_skipping_operations_is_throwing_them_away(self, attention: str, plan: Operations) -> None:
        """Operations that a plan skips are as if computed and not added."""
        model, processor = self.family.build(attention)
        inputs = self.family.ask(processor, 2, 1)
        check_operations(self.family, model, processor, inputs, plan, keep_tokens=KEEP)

    @over(side=["left", "right"])
    def test_dropping_is_masking_in_a_forward(self, attention: str, positions: Any, side: str) -> None:
        """A forward is pruned as ``generate`` is, whichever side the padding is on."""
        family, (model, processor) = self.family, self.family.build(attention)
        inputs = family.ask(processor, 1, 2, side=side)
        with torch.no_grad(), tp.prune(model, processor, Project(positions=positions), keep_tokens=KEEP) as trace:
            logits = model(**inputs).logits
        left = [sum(inputs["attention_mask"][row]) - all_ + some for row, (all_, some) in enumerate(trace.counts)]
        last = torch.tensor([logits.shape[1] - 1 if side == "left" else n - 1 for n in left])
        answers = torch.ones(2, 1, dtype=torch.long)
        wanted = masked_layers_logits(model, inputs, trace.stages, [positions], answers, family=family)
        torch.testing.assert_close(logits[torch.arange(2), last][:, None], wanted, atol=5e-5, rtol=0)

    def test_the_stateless_way_is_the_same(self, attention: str, positions: Any) -> None:
        """``prune_inputs``, ``prefill`` and ``generate`` of a session give what a block gives."""
        model, processor = self.family.build(attention)
        session, pruner = Session(adapter_for(model, processor)), Project(positions=positions)
        inputs = self.family.ask(processor, 1, 2)
        with tp.prune(model, processor, pruner, keep_tokens=KEEP) as trace:
            tokens, logits = generated(model, inputs)
        pruned = session.prune_inputs(inputs, pruner, Budget(keep_tokens=KEEP))
        assert stage_traces(pruned, (), 2)[0].keep == trace.stages[0].keep
        assert pruned.layout.item_rows == (0, 1, 1)
        assert torch.equal(generated(model, pruned.inputs)[1], logits)
        prefill = session.prefill(pruned.inputs).output
        assert torch.equal(prefill.logits[:, 0], logits[:, 0])
        assert cache_of(prefill).get_seq_length() == pruned.inputs["input_ids"].shape[1]
        assert session.generate(pruned.inputs, max_new_tokens=STEPS).output == [
            text.strip() for text in processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        ]

    def test_a_sample_alone_is_the_sample_in_a_batch(self, attention: str, scope: str) -> None:
        """A prompt keeps the same tokens and gets the same answer by itself and beside a longer one."""
        model, processor = self.family.build(attention)
        batch, alone = self.family.ask(processor, 2, 1), self.family.ask(processor, 2, 1, only=1)
        with tp.prune(model, processor, Project(), scope=scope, keep_tokens=KEEP) as trace:
            tokens, logits = generated(model, batch)
            together = trace.stages[0].keep
            single, single_logits = generated(model, alone)
        assert trace.stages[0].keep == together[1:]
        assert single.tolist() == tokens[1:].tolist()
        torch.testing.assert_close(single_logits, logits[1:], atol=5e-5, rtol=0)
        session = Session(adapter_for(model, processor, scope=scope))
        layouts = [session.encode(inputs).layout for inputs in (batch, alone)]
        ids = [layout.ids.tolist() for layout in layouts]
        assert ids[1] == layouts[0].ids[layouts[0].rows == 1].tolist()
        assert len(set(ids[0])) == len(ids[0]) >= 3
