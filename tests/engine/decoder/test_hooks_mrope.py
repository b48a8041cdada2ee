"""Pruning inside an LLM whose position ids have three axes, without an adapter: the mechanism knows no model family."""

import pytest
import torch

from tokenprune.core.errors import ModelError
from tokenprune.core.steps import Step
from tokenprune.engine.decoder.hooks import InsideLLM
from tokenprune.engine.decoder.inside_plan import InsidePlan, PromptTokens
from tokenprune.engine.trace import StageTrace
from tokenprune.testing.families.qwen_vl import FAMILIES
from tokenprune.testing.masked_layers import masked_layers_logits
from tokenprune.testing.pruners import Within

FAMILY = FAMILIES["qwen2_5_vl"]


def inside(model, inputs, pruner, ratio):
    visual = FAMILY.placeholder(model, inputs["input_ids"])
    number = (visual.long().cumsum(1) - 1).masked_fill(~visual, -1)
    stages = pruner.stages(None)
    prompt = PromptTokens(
        visual,
        number,
        [pruner.counts(None, max(1, round(ratio * total)), total) for total in visual.sum(1).tolist()],
        lambda: torch.arange(len(visual)),
    )
    return InsideLLM(model, InsidePlan(tuple(Step(stage, pruner, pruner.positions) for stage in stages), prompt))


def generated(model, inputs, steps=17):
    out = model.generate(
        **inputs, max_new_tokens=steps, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1)


@pytest.mark.parametrize("rows", [(1,), (1, 2)], ids=str)
@pytest.mark.parametrize("pruner", [Within(), Within(layers=(1, 2, 3), own=True)], ids=["one", "three"])
def test_dropping_is_masking_from_that_layer_on(rows, pruner):
    model, processor = FAMILY.build("sdpa")
    inputs = FAMILY.ask(processor, *rows)
    with inside(model, inputs, pruner, 0.3) as run:
        tokens, logits = generated(model, inputs)
    stages = [
        StageTrace(step.stage, alive.kept, alive.counts) for step, alive in zip(run.steps, run.stages, strict=True)
    ]
    wanted = masked_layers_logits(model, inputs, stages, ["original"] * len(stages), tokens, family=FAMILY)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)
    assert torch.equal(wanted.argmax(-1), tokens)
    assert (tokens != tokens[:, :1]).any()
    totals = [before for before, _ in FAMILY.counts(model, inputs, 0)]
    assert [len(row) for row in stages[-1].keep] == [round(0.3 * total) for total in totals]


def test_gaps_in_several_axes_cannot_be_closed():
    model, processor = FAMILY.build("sdpa")
    inputs = FAMILY.ask(processor, 1)
    with pytest.raises(ModelError, match="several axes"), inside(model, inputs, Within(positions="repacked"), 0.3):
        generated(model, inputs, 1)
