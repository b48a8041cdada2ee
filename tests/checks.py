"""Checks that hold for any family, and what those that cut images into tiles share: pictures and prompts."""

import numpy as np
import pytest
import torch
from families import Family
from masked_layers import masked_layers_logits
from masked_operations import masked_operations_logits
from PIL import Image
from tiny import IMAGE_SIZE, QUESTIONS, Project, randomise
from tiny_plans import Planned

import tokenprune as tp
from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.core.errors import ModelError

SIZES = [(80, 80), (40, 80), (80, 24), (40, 40)]  # height and width of each picture in turn, pixels
STEPS = 9  # the first is the prefill's
GENERATION = {"max_new_tokens": STEPS, "return_dict_in_generate": True, "output_logits": True, "do_sample": False}
ROWS = [(1,), (2, 1), (1, 0, 2)]
FRAMES = 3
CANVASES = [[40, 80], [80, 40], [80, 80]]


def picture(seed, height=IMAGE_SIZE, width=IMAGE_SIZE):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def clip(seed):
    """A video of random pixels, (frames, 3, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 255, (FRAMES, 3, 50, 60), dtype=torch.uint8, generator=generator)


def text_config(kind="llama", vocabulary=None, **changes):
    from transformers import AutoConfig

    from tokenprune.embedded.tokenizer import VOCABULARY

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    tokens = {"pad_token_id": VOCABULARY["<pad>"], "bos_token_id": VOCABULARY["<s>"], "eos_token_id": None}
    size = vocabulary or len(VOCABULARY)
    return AutoConfig.for_model(kind, vocab_size=size, num_key_value_heads=2, **{**sizes, **tokens, **changes})


def finish(model, attention, *silent):
    """Random weights; it never says the tokens in ``silent``."""
    torch.manual_seed(0)
    randomise(model)
    with torch.no_grad():
        model.lm_head.weight[[model.config.image_token_id, *silent]] = 0
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = model.config.text_config.pad_token_id
    return model


class Tiles(Family):
    """Families whose images are cut into tiles.

    Attributes:
        token: of an image in a prompt.
        sizes: height and width of each picture in turn, pixels.
    """

    scopes = ("tile", "image")
    token = "<image>"
    sizes = SIZES

    def ask(self, processor, *images_per_row, seed=0, side="left", only=None, sizes=None):
        """Images differ in their sizes, too, unless those are given."""
        sizes = sizes or self.sizes
        texts = [
            "USER: " + "on the left " * row + f"where {self.token}\n" * number + QUESTIONS[row] + " ASSISTANT:"
            for row, number in enumerate(images_per_row)
        ]
        images = [picture(seed + index, *sizes[index % len(sizes)]) for index in range(sum(images_per_row))]
        if only is not None:
            before = sum(images_per_row[:only])
            texts, images = texts[only : only + 1], images[before : before + images_per_row[only]]
        return dict(processor(images=images, text=texts, padding=True, padding_side=side, return_tensors="pt"))

    @torch.no_grad()
    def fixed(self, model, inputs):
        """Tokens that are the model's newline."""
        newline = getattr(model.base_model, "image_newline", torch.tensor(torch.nan))
        same = (self.embeds(model, inputs) == newline).all(-1)
        visual = self.placeholder(model, inputs["input_ids"])
        return [row[at].nonzero()[:, 0].tolist() for row, at in zip(same, visual, strict=True)]


class Mixed(Tiles):
    """Each second picture is a video of as many frames as any."""

    def ask(self, processor, *images_per_row, seed=0, side="left", only=None, sizes=None):
        sizes, number, texts, images, videos = sizes or self.sizes, seed, [], [], []
        for row, count in enumerate(images_per_row):
            marks = ""
            for _ in range(count):
                video = (number - seed) % 2
                if only in (None, row) and video:
                    videos.append(clip(number))
                elif only in (None, row):
                    images.append(picture(number, *sizes[(number - seed) % len(sizes)]))
                marks += f"where {'<video>' if video else '<image>'}\n"
                number += 1
            texts.append("USER: " + "on the left " * row + marks + QUESTIONS[row] + " ASSISTANT:")
        texts = texts if only is None else texts[only : only + 1]
        how = {"padding": True, "padding_side": side, "return_tensors": "pt"}
        return dict(processor(images=images or None, videos=videos or None, text=texts, **how))


def generated(model, inputs, **changes):
    """Answer tokens (B, T) and their logits (B, T, vocabulary)."""
    out = model.generate(**inputs, **GENERATION, **changes)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1)


def check_masking(family, model, processor, inputs, pruner, scope=None, **budget):
    """What a pruned ``generate`` says is what the whole prompt says with what was dropped masked; returns the trace."""
    with tp.prune(model, processor, pruner, scope=scope, **budget) as trace:
        tokens, logits = generated(model, inputs)
    policies = [pruner.positions] * len(trace.stages)
    wanted = masked_layers_logits(model, inputs, trace.stages, policies, tokens, family=family)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=0)
    assert torch.equal(wanted.argmax(-1), tokens)
    # A model that repeats itself would hide errors in decoding; of a single row that cannot be ruled out.
    assert len(tokens) == 1 or (tokens != tokens[:, :1]).any()
    return trace


def check_operations(family, model, processor, inputs, plan, **budget):
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


def check_identity(model, processor, inputs, pruner, scope=None):
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


def check_second_turn(model, processor, inputs, **budget):
    """On the cache, a question more gets the answer that it gets without, and a new image is refused."""
    words = processor.tokenizer("USER: is there a star ? ASSISTANT:", add_special_tokens=False)["input_ids"]
    text = torch.tensor([words]).expand(len(inputs["input_ids"]), -1)

    def longer(first, added):
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


def check_beams(family, model, processor, inputs, pruner, **budget):
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
