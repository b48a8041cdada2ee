"""Arguments of a call."""

import contextlib
import copy
from typing import Any

import numpy as np
import torch

import tokenprune as tp
from block_cases.base import NEW, Subject, case, same
from tokenprune.adapters.cache_argument import CACHE

ARGUMENTS = "arguments"
PACKED = "a row holds several prompts"
EMBEDS = "inputs_embeds do not tell where the images are"


@case(ARGUMENTS, "`None` for any argument, such as `eos_token_id=None`")
def _(s: Subject) -> None:
    s, x = s.own(), s.inputs()
    length = x["input_ids"].shape[1]
    how: dict[str, Any] = {
        "max_new_tokens": 8,
        "do_sample": False,
        "eos_token_id": None,
        "output_scores": None,
        CACHE: None,
    }
    s.model.generation_config.eos_token_id = int(s.model.generate(**x, max_new_tokens=3)[0, length + 1])
    plain, logits = s.model.generate(**x, **how), s.logits({**x, "labels": None, "position_ids": None})
    assert plain.shape[1] == length + 8
    with s.prune(keep_ratio=1.0):
        same(s.model.generate(**x, **how, position_ids=None), plain)
        same(s.logits({**x, "labels": None, "position_ids": None}), logits)


@case(ARGUMENTS, "arguments by position")
def _(s: Subject) -> None:
    x = s.inputs()
    ids, rest = x["input_ids"], {name: value for name, value in x.items() if name != "input_ids"}
    logits, said = s.pruned(x)
    with s.prune(), torch.no_grad():
        same(s.model.generate(ids, **rest, max_new_tokens=NEW), said)
        same(s.model(ids, **rest).logits, logits)


@case(ARGUMENTS, "position ids of any shape that the model takes")
def _(s: Subject) -> None:
    x = s.inputs(1, 1, side="right")
    length = x["input_ids"].shape[1]
    flat = torch.arange(length)[None]
    shapes = [flat, flat.expand(2, -1), flat + 5]
    if s.family.placeholder and hasattr(s.model.base_model, "get_rope_index"):
        shapes += [flat.expand(3, 2, -1), flat.expand(4, 2, -1), flat[None].expand(3, 1, -1)]
    for positions in shapes:
        given = {**x, "position_ids": positions}
        real = x["attention_mask"].bool()  # what comes out of padding means nothing
        plain = s.logits(given)[real]
        with s.prune(keep_ratio=1.0):
            same(s.logits(given)[real], plain)
        with s.prune() as trace:
            s.logits(given)
        assert len(trace.calls) == 1


@case(ARGUMENTS, "lists and arrays where the model takes them")
def _(s: Subject) -> None:
    x = s.inputs(1, 1)
    logits, _ = s.pruned(x)
    for name, value in x.items():
        for form in (value.tolist(), value.numpy(), list(value)):
            try:
                s.logits({**x, name: form})
            except Exception:
                continue
            with s.prune():
                same(s.logits({**x, name: form}), logits)


@case(ARGUMENTS, "`logits_to_keep`: a number, or indices of the caller's columns")
def _(s: Subject) -> None:
    x = s.inputs()
    length = x["input_ids"].shape[1]
    visual = s.family.placeholder(s.model, x["input_ids"])[0].nonzero()[:, 0]
    with s.prune() as trace:
        whole = s.logits(x)
        last = whole.shape[1] - 1
        for wanted, places in (
            (3, [last - 2, last - 1, last]),
            (torch.tensor([length - 3, length - 1]), [last - 2, last]),
            (torch.tensor([-1, -2]), [last, last - 1]),
            ([length - 2], [last - 1]),
            (np.array([length - 1]), [last]),
            (slice(length - 2, None), [last - 1, last]),
        ):
            torch.testing.assert_close(s.logits({**x, "logits_to_keep": wanted}), whole[:, places])
        if s.place == "before" and trace.counts[0][0] > trace.counts[0][1]:
            kept = set(trace.stages[0].keep[0])
            gone = next(int(at) for number, at in enumerate(visual) if number not in kept)
            with contextlib.suppress(tp.TokenPruneError):  # a token that no pruner may drop
                assert s.logits({**x, "logits_to_keep": torch.tensor([gone])}).shape[1] == 1


@case(ARGUMENTS, "a tokenizer without a pad token")
def _(s: Subject) -> None:
    s, x = s.own(), s.inputs()
    logits, said = s.pruned(x)
    s.processor = copy.deepcopy(s.processor)
    s.processor.tokenizer.pad_token = None
    with s.prune():
        same(s.model.generate(**x, max_new_tokens=NEW), said)
        same(s.logits(x), logits)


@case(ARGUMENTS, "several prompts in a row (packed, padding-free)", before=PACKED, inside=PACKED)
def _(s: Subject) -> None:
    x = s.inputs()
    x.pop("attention_mask", None)
    length = x["input_ids"].shape[1]
    packed = torch.arange(length) % (length // 2)
    axes = 4 if hasattr(s.model.base_model, "get_rope_index") else 1
    positions = packed.expand(4, 1, -1) if axes == 4 else packed[None]
    with s.prune(), torch.no_grad():
        s.model(**x, position_ids=positions, use_cache=False)


@case(ARGUMENTS, "`inputs_embeds`", before=EMBEDS, inside=EMBEDS)
def _(s: Subject) -> None:
    x = s.inputs()
    embeds = s.model.get_input_embeddings()(x.pop("input_ids"))
    with s.prune(), torch.no_grad():
        s.model(**x, inputs_embeds=embeds)


@case(ARGUMENTS, "answers padded on the right behind prompts padded on the left: columns count from the end")
def _(s: Subject) -> None:
    if "paligemma" in type(s.family).__module__:
        return  # its prompts have no answers behind them
    x = s.inputs(1, 1)
    ids, mask, extra = x["input_ids"], x["attention_mask"], torch.tensor([[9, 10, 11], [9, 0, 0]])
    longer = {name: value for name, value in x.items() if name not in ("mm_token_type_ids", "token_type_ids")}
    longer |= {
        name: torch.nn.functional.pad(x[name], (0, 3)) for name in ("mm_token_type_ids", "token_type_ids") if name in x
    }
    longer["input_ids"] = torch.cat([ids, extra], 1)
    longer["attention_mask"] = torch.cat([mask, (extra != 0).long()], 1)
    with s.prune():
        last = s.logits({**longer, "logits_to_keep": 3})
        for row in range(2):
            alone = s.family.ask(s.processor, 1, 1, only=row)
            real = extra[row][extra[row] != 0]
            whole = {**alone, "input_ids": torch.cat([alone["input_ids"], real[None]], 1)}
            for name in ("attention_mask", "mm_token_type_ids", "token_type_ids"):
                if name in alone:
                    whole[name] = torch.nn.functional.pad(
                        alone[name], (0, len(real)), value=int(name == "attention_mask")
                    )
            wanted = s.logits(whole)[0, -len(real) :]
            torch.testing.assert_close(last[row, : len(real)], wanted, atol=1e-4, rtol=0)
