"""Random prompts, schedules of layers and budgets: whatever they are, dropping is masking from that layer on."""

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tokenprune as tp
from tokenprune.adapters.cache_argument import cache_of
from tokenprune.core.budget import Budget
from tokenprune.core.stages import PRE_LLM
from tokenprune.pruners.compose import Compose
from tokenprune.testing.families.base import dense
from tokenprune.testing.families.llava import ask, shared_llava
from tokenprune.testing.masked_layers import layer_loop, llava_embeds, masked_layers_logits
from tokenprune.testing.pruners import Project, Within

STEPS = 5  # the first is the prefill's
IMAGE, LAYERS = 25, 4  # visual tokens of an image, decoder layers
POSITIONS = st.sampled_from(["original", "repacked"])
SHARES = st.floats(0.03, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outside(Project):
    """A stage before the LLM that keeps a share of its own."""

    share: float

    @property
    def budget(self):
        return Budget(keep_ratio=self.share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inside(Within):
    """A stage inside the LLM that keeps a share of its own."""

    share: float

    @property
    def budget(self):
        return Budget(keep_ratio=self.share)


@st.composite
def schedules(draw):
    """One stage before the LLM or none, and one to three inside, each with its own options."""
    outside = draw(st.lists(st.builds(Outside, positions=POSITIONS, share=SHARES), max_size=1))
    layers = sorted(draw(st.sets(st.integers(1, LAYERS - 1), min_size=1)))
    inside = [
        draw(st.builds(Inside, layers=st.just((layer,)), positions=POSITIONS, own=st.booleans(), share=SHARES))
        for layer in layers
    ]
    return Compose(pruners=(*outside, *inside))


@st.composite
def layouts(draw):
    """For each row the numbers of words before each of its images and after the last."""
    images = draw(st.lists(st.integers(0, 2), min_size=1, max_size=3).filter(any))
    return [[*(draw(st.integers(0, 5)) for _ in range(number)), draw(st.integers(1, 6))] for number in images]


def prompts(model, processor, layout, seed):
    """Inputs of such rows, padded on the left, with random words and pictures."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.tensor(processor.tokenizer(["how many red things are there on the left of it ?"]).input_ids[0][1:])
    image, pad = model.config.image_token_id, processor.tokenizer.pad_token_id
    rows = []
    for gaps in layout:
        rows.append([])
        for place, number in enumerate(gaps):
            rows[-1] += words[torch.randint(len(words), (number,), generator=generator)].tolist()
            rows[-1] += [image] * IMAGE if place < len(gaps) - 1 else []
    longest, images = max(map(len, rows)), sum(len(gaps) - 1 for gaps in layout)
    return {
        "input_ids": torch.tensor([[pad] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        "pixel_values": ask(processor, images, seed=seed)["pixel_values"],
    }


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(layouts(), schedules(), st.sampled_from([{}, {"use_cache": False}, {"cache_implementation": "static"}]))
def test_any_schedule_on_any_prompt(layout, pruner, how):
    model, processor = shared_llava("sdpa")
    inputs = prompts(model, processor, layout, seed=len(layout))
    torch.manual_seed(0)  # sampled, since a model that repeats itself would hide errors in decoding
    details = {"do_sample": True, "temperature": 9.0, "return_dict_in_generate": True, "output_logits": True}
    with tp.prune(model, processor, pruner) as trace:
        out = model.generate(**inputs, max_new_tokens=STEPS, **details, **how)
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    policies = [member.positions for member, _ in pruner.members]
    wanted = masked_layers_logits(model, inputs, trace.stages, policies, tokens)
    torch.testing.assert_close(torch.stack(out.logits, 1), wanted, atol=1e-4, rtol=0)
    check_counts(trace, layout, pruner)
    check_choice(trace, inputs, pruner)
    if not how:
        check_cache(trace, inputs, cache_of(out))


def check_counts(trace, layout, pruner):
    """Stages nest, and each leaves its share of each image of a row."""
    images = [len(gaps) - 1 for gaps in layout]
    before, left = [list(range(IMAGE * number)) for number in images], IMAGE
    assert len(trace.stages) == len(pruner.members)
    for stage, (member, _) in zip(trace.stages, pruner.members, strict=True):
        left = max(1, round(member.share * left))
        assert stage.counts == [number * left for number in images]
        assert [len(keep) for keep in stage.keep] == stage.counts
        for keep, candidates in zip(stage.keep, before, strict=True):
            assert keep == sorted(set(keep))
            assert set(keep) <= set(candidates)
        before = stage.keep
    assert trace.counts == [(IMAGE * number, left * number) for number in images]


def check_choice(trace, inputs, pruner):
    """What stays has the most of the last token's attention, as the eager layers of the masked model compute it."""
    model, _ = shared_llava("eager")
    policies = [member.positions for member, _ in pruner.members]
    embeds, real = llava_embeds(model)(inputs), inputs["attention_mask"].bool()
    for row, mask in enumerate(real):
        visual = inputs["input_ids"][row][mask] == model.config.image_token_id
        before, drops = list(range(int(visual.sum()))), []
        for stage, (member, _) in zip(trace.stages, pruner.members, strict=True):
            keep, layer = stage.keep[row], stage.stage.layer
            if keep and stage.stage != PRE_LLM:
                seen = []
                attention = model.get_decoder().layers[layer if member.own else layer - 1].self_attn
                handle = attention.register_forward_hook(lambda m, args, out, seen=seen: seen.append(out[1]))
                with torch.no_grad():
                    x = embeds[row][mask]
                    layer_loop(model, x, visual, dense(row, len(x)), drops, policies[: len(drops)])
                handle.remove()
                scores = seen[0][0, :, -1, visual].mean(0)
                gone = sorted(set(before) - set(keep))
                assert not gone or scores[keep].min() > scores[gone].max() - 1e-6
            drops.append((layer or 0, keep))
            before = keep


def check_cache(trace, inputs, cache):
    """Each layer holds the text and what was alive at it, padded to the longest row; the last answer is not in it."""
    model, _ = shared_llava("sdpa")
    visual = inputs["input_ids"] == model.config.image_token_id
    text = (inputs["attention_mask"].bool() & ~visual).sum(1).tolist()
    for index, storage in enumerate(cache.layers):
        alive = visual.sum(1).tolist()
        for stage in trace.stages:
            alive = stage.counts if (stage.stage.layer or 0) <= index else alive
        assert storage.keys.shape[2] == max(map(sum, zip(text, alive, strict=True))) + STEPS - 1
