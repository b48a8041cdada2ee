"""Checks that hold for any family: what is dropped is masked, and keeping everything is the model itself."""

from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp
from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.core.errors import ModelError
from tokenprune.core.plan import Operations
from tokenprune.engine.loading import adapter_for
from tokenprune.testing.families.base import Family, Inputs
from tokenprune.testing.masked_layers import masked_layers_logits
from tokenprune.testing.masked_operations import masked_operations_logits
from tokenprune.testing.pruners import Planned, Project

STEPS = 9  # the first is the prefill's
GENERATION = {"max_new_tokens": STEPS, "return_dict_in_generate": True, "output_logits": True, "do_sample": False}
ROWS = [(1,), (2, 1), (1, 0, 2)]


def generated(model: Any, inputs: Inputs, **changes: Any) -> tuple[Tensor, Tensor]:
    """Answer tokens (B, T) and their logits (B, T, vocabulary)."""
    out = model.generate(**inputs, **GENERATION, **changes)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1)


def check_masking(
    family: Family, model: Any, processor: Any, inputs: Inputs, pruner: Any, scope: str | None = None, **budget: Any
) -> Any:
    """What a pruned ``generate`` says is what the whole prompt says with what was dropped masked; returns the trace."""
    with tp.prune(model, processor, pruner, scope=scope, **budget) as trace:
        tokens, logits = generated(model, inputs)
    policies = [step.positions for step in pruner.steps(adapter_for(model, processor).spec)]
    wanted = masked_layers_logits(model, inputs, trace.stages, policies, tokens, family=family)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)
    assert torch.equal(wanted.argmax(-1), tokens)
    # A model that repeats itself would hide errors in decoding; of a single row that cannot be ruled out.
    assert len(tokens) == 1 or (tokens != tokens[:, :1]).any()
    return trace


def check_operations(
    family: Family, model: Any, processor: Any, inputs: Inputs, plan: Operations, **budget: Any
) -> None:
    """A plan of one group is what the model gives if the skipped work is computed and thrown away."""
    with tp.prune(model, processor, Planned(given=plan), **budget) as trace:
        tokens, logits = generated(model, inputs)
    totals = family.placeholder(model, inputs["input_ids"]).sum(1).tolist()
    groups = [
        [0 if n in keep else 1 if n in stay else -1 for n in range(total)]  # 1 is text, for which everything runs
        for keep, stay, total in zip(trace.stages[0].keep, family.fixed(model, inputs), totals, strict=True)
    ]
    wanted = masked_operations_logits(model, inputs, plan.active, groups, tokens, family=family)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)


def check_identity(model: Any, processor: Any, inputs: Inputs, pruner: Any, scope: str | None = None) -> None:
    """Keeping everything is the unpruned model bit for bit."""
    tokens, logits = generated(model, inputs)
    with torch.no_grad():
        forward = model(**inputs).logits
        with tp.prune(model, processor, pruner, scope=scope, keep_ratio=1.0) as trace:
            assert torch.equal(model(**inputs).logits, forward)
            again = generated(model, inputs)
    assert torch.equal(again[0], tokens)
    assert torch.equal(again[1], logits)
    assert len(trace.calls) == 2


def check_second_turn(model: Any, processor: Any, inputs: Inputs, **budget: Any) -> None:
    """On the cache, a question more gets the answer that it gets without, and a new image is refused."""
    words = processor.tokenizer("USER: is there a star ? ASSISTANT:", add_special_tokens=False)["input_ids"]
    text = torch.tensor([words]).expand(len(inputs["input_ids"]), -1)

    def longer(first: Any, added: Any) -> Inputs:
        ids = torch.cat([first.sequences, added], 1)
        more = ids.shape[1] - inputs["input_ids"].shape[1]
        mask = torch.nn.functional.pad(inputs["attention_mask"], (0, more), value=1)
        return {**inputs, "input_ids": ids, "attention_mask": mask}

    with tp.prune(model, processor, Project(), **budget):
        first = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
        second = longer(first, text)
        out = model.generate(**second, **{CACHE: cache_of(first)}, max_new_tokens=STEPS)
        assert torch.equal(out, model.generate(**second, max_new_tokens=STEPS))
        first = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True)
        with pytest.raises(ModelError, match="whose number of tokens varies; give them all at first"):
            model.generate(**longer(first, inputs["input_ids"]), **{CACHE: cache_of(first)}, max_new_tokens=STEPS)


def check_beams(family: Family, model: Any, processor: Any, inputs: Inputs, pruner: Any, **budget: Any) -> Any:
    """Beam search from pruned inputs is beam search from input embeddings that were made shorter by hand."""
    # With three, images in a wrong order would meet the right rows in the first beam, which all others come from.
    how = {"num_beams": 2, "max_new_tokens": 6, "length_penalty": 0.0, "do_sample": False}
    with tp.prune(model, processor, pruner, **budget) as trace:
        sequences = model.generate(**inputs, **how)
    embeds, real = family.embeds(model, inputs), inputs["attention_mask"].bool()
    visual, rows = family.placeholder(model, inputs["input_ids"]), []
    for row, (keep, stay) in enumerate(zip(trace.stages[0].keep, family.fixed(model, inputs), strict=True)):
        left = real[row].clone()
        left[visual[row]] = torch.isin(torch.arange(int(visual[row].sum())), torch.tensor(keep + stay))
        rows.append(embeds[row][left])
    shorter = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
    mask = torch.tensor([[0] * (shorter.shape[1] - len(row)) + [1] * len(row) for row in rows])
    wanted = model.generate(inputs_embeds=shorter, attention_mask=mask, **how)
    assert sequences[:, inputs["input_ids"].shape[1] :].tolist() == wanted.tolist()
    return trace
