"""Merged and appended tokens inside the LLM: each row is what the layers give for its short sequence, written out."""

import dataclasses

import pytest
import torch

import tokenprune as tp
from tokenprune.core.selection import TokenSelection
from tokenprune.functional.vectors import take
from tokenprune.testing.families.llava import ask, shared_llava
from tokenprune.testing.masked_layers import llava_embeds
from tokenprune.testing.pruners import Within

STEPS = 9  # the first is the prefill's


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merging(Within):
    """Adds the mean of what it drops to what it keeps, appends means of parts of it, and remembers what it did."""

    layers: tuple[int, ...] = (1, 3)
    done: list = dataclasses.field(default_factory=list)

    def appended(self, dropped):
        return dropped // 5

    def _select(self, tokens, k):
        order = self.score(tokens).argsort(dim=1, descending=True)
        keep, dropped = order[:, :k].sort(1).values, take(tokens.features, order[:, k:])
        merged = take(tokens.features, keep) + dropped.mean(1, keepdim=True)
        parts = [dropped[:, i::m].mean(1) for m in [self.appended(dropped.shape[1])] for i in range(m)]
        selection = TokenSelection(keep, tokens.num_tokens, merged=torch.cat([merged, torch.stack(parts, 1)], 1))
        self.done.append(selection)
        return selection


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", ["original", "repacked"])
@pytest.mark.parametrize("rows", [(1,), (1, 2), (2, 1), (2, 1, 1)], ids=str)
def test_merged_tokens_go_on_as_any_do(attention, positions, rows):
    model, processor = shared_llava(attention)
    inputs, pruner = ask(processor, *rows), Merging(positions=positions)
    how = {"max_new_tokens": STEPS, "return_dict_in_generate": True, "output_logits": True}
    with tp.prune(model, processor, pruner, keep_tokens=7) as trace:
        out = model.generate(**inputs, **how)
        again = model.generate(**inputs, **how, cache_implementation="static")
    tokens, groups = out.sequences[:, inputs["input_ids"].shape[1] :], len(set(rows))
    embeds = llava_embeds(model)(inputs)
    for row, (images, answer) in enumerate(zip(rows, tokens, strict=True)):
        mask = inputs["attention_mask"][row].bool()
        ids = torch.cat([inputs["input_ids"][row][mask], answer])
        x = torch.cat([embeds[row][mask], model.get_input_embeddings()(answer)])
        choices = [chosen(pruner.done[:groups], row), chosen(pruner.done[groups : 2 * groups], row)]
        logits, counts = short_sequence(model, x, ids == model.config.image_token_id, choices, positions)
        torch.testing.assert_close(torch.stack(out.logits, 1)[row], logits[-1 - STEPS : -1], atol=1e-4, rtol=0)
        assert [stage.counts[row] for stage in trace.stages] == counts
        assert counts[-1] > 7 * images
    assert torch.equal(again.sequences, out.sequences)


def chosen(selections, row):
    """What was kept of a row, and its new features; rows of equal numbers follow one another here."""
    flat = [pair for selection in selections for pair in zip(selection.keep, selection.merged, strict=True)]
    return flat[row]


@torch.no_grad()
def short_sequence(model, x, visual, choices, positions):
    """Logits of a row's tokens, and how many are visual after each stage; tokens really leave the row and join it."""
    decoder, number, counts = model.get_decoder(), torch.arange(len(x)), []
    for index, layer in enumerate(decoder.layers):
        if index in (1, 3):
            (keep, merged), place = choices[len(counts)], visual.nonzero()[:, 0]
            last = int(place.max()) + 1
            kept = place[keep]
            x = x.clone()
            x[kept] = merged[: len(keep)]
            stay = ~visual
            stay[kept] = True
            before, after, more = stay.clone(), stay.clone(), merged[len(keep) :]
            before[last:], after[:last] = False, False
            x = torch.cat([x[before], more, x[after]])
            visual = torch.cat([visual[before], torch.ones(len(more), dtype=torch.bool), visual[after]])
            number = torch.cat([number[before], number[last - 1].expand(len(more)), number[after]])
            if positions == "repacked":
                number = torch.arange(len(x))
            counts.append(int(visual.sum()))
        mask = torch.full((len(x), len(x)), torch.finfo(torch.float32).min).triu(1)
        rotation = decoder.rotary_emb(x[None], number[None])
        x = layer(x[None], attention_mask=mask[None, None], position_embeddings=rotation)[0]
    return model.lm_head(decoder.norm(x)), counts
