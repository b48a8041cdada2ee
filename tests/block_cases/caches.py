"""Caches of keys and values."""

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import (
    DynamicCache,
    StaticCache,
)

import tokenprune as tp
from block_cases.base import NEW, Subject, case, follow, left_on, same
from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.engine.decoder.decoder_checks import HOOKS_RUN_ONCE

CACHES = "caches"
CHANGED = "does not hold the prompt any more that was pruned into it"
OTHER = "was not filled in this block"


ONE_TURN = {"paligemma": "PaliGemma answers one prompt; a later turn on its cache cannot be pruned"}


@case(CACHES, "a copy of a cache, also one that was made of its tensors", others=ONE_TURN)
def _(s: Subject) -> None:
    x = s.inputs()
    with s.prune():
        first = s.model.generate(**x, max_new_tokens=3, return_dict_in_generate=True)
        cache, second = cache_of(first), follow(x, first.sequences)
        copies = [copy.deepcopy(cache), pickled(cache)]
        said = s.model.generate(**second, **{CACHE: cache}, max_new_tokens=NEW)
        for other in copies:
            same(s.model.generate(**second, **{CACHE: other}, max_new_tokens=NEW), said)


@case(
    CACHES,
    "a cache of a turn without images, the image in the next; where images have any number of tokens, it is refused",
    inside="the whole prompt in one forward",
    others={
        "paligemma": "the prompt has image placeholders, and no image is given",
        **({} if HOOKS_RUN_ONCE else {"gemma3": "this version of transformers masks images of a later turn wrongly"}),
    },
)
def _(s: Subject) -> None:
    x = s.inputs()
    ids = x["input_ids"]
    hello = ids[:, :1].repeat(1, 1)
    words = s.processor.tokenizer("on the left", add_special_tokens=False, return_tensors="pt").input_ids
    first = torch.cat([hello, words], 1)
    whole = {**x, "input_ids": torch.cat([first, ids[:, 1:]], 1)}
    more = whole["input_ids"].shape[1] - ids.shape[1]
    for name in ("attention_mask", "mm_token_type_ids", "token_type_ids"):
        if name in x:
            whole[name] = torch.nn.functional.pad(x[name], (more, 0), value=int(name == "attention_mask"))
    with s.prune(), torch.no_grad():
        wanted = s.model.generate(**whole, max_new_tokens=NEW)
        cache = cache_of(s.model(first, use_cache=True))
        try:
            found = s.model.generate(**whole, **{CACHE: cache}, max_new_tokens=NEW)
        except tp.TokenPruneError as error:
            # Where images have any number of tokens, later turns bring none.
            if s.place == "before" and "whose number of tokens varies" in str(error):
                return
            if "whose number of tokens varies" in str(error):
                raise tp.TokenPruneError("the whole prompt in one forward") from error
            raise
    same(found, wanted)


def pickled(cache: Any) -> Any:
    """A cache of the same content that knows nothing of the first."""
    made = DynamicCache()
    for index, layer in enumerate(cache.layers):
        made.update(layer.keys.clone(), layer.values.clone(), index)
    return made


@case(CACHES, "threads that go on with copies of one cache", others=ONE_TURN)
def _(s: Subject) -> None:
    x, before = s.inputs(), left_on(s.model)
    handle = s.attach()
    try:
        first = s.model.generate(**x, max_new_tokens=3, return_dict_in_generate=True)
        second = follow(x, first.sequences)
        copies = [copy.deepcopy(cache_of(first)) for _ in range(5)]
        how = {"max_new_tokens": NEW}
        wanted = s.model.generate(**second, **{CACHE: copies.pop()}, **how)
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(s.model.generate, **second, **{CACHE: cache}, **how) for cache in copies]:
                same(done.result(), wanted)
    finally:
        handle.remove()
    assert left_on(s.model) == before


@case(CACHES, "a cache that a forward filled, with `return_dict=False` too", others=ONE_TURN)
def _(s: Subject) -> None:
    x, found = s.inputs(), []
    token = torch.tensor([[9]])
    for how in ({}, {"return_dict": False}):
        with s.prune(), torch.no_grad():
            cache = DynamicCache(config=s.model.config.get_text_config())
            s.model(**x, **{CACHE: cache}, **how)
            found.append(s.model(input_ids=token, **{CACHE: cache}).logits)
    same(*found)


PRUNED = "holds a pruned prompt"


@case(CACHES, "a pruned cache in a block without a pruner", before=PRUNED, inside=PRUNED)
def _(s: Subject) -> None:
    x = s.inputs()
    with s.prune():
        first = s.model.generate(**x, max_new_tokens=3, return_dict_in_generate=True)
        with tp.prune(s.model, s.processor, None):
            s.model.generate(**follow(x, first.sequences), **{CACHE: cache_of(first)}, max_new_tokens=NEW)


@case(CACHES, "a cache that was emptied, for the next prompt")
def _(s: Subject) -> None:
    x, y = s.inputs(), s.inputs(seed=3)
    text = s.model.config.get_text_config()
    cache = StaticCache(config=text, max_cache_len=400)
    sliding = any(type(layer).__name__ != "StaticLayer" for layer in cache.layers)
    with s.prune():
        wanted = s.model.generate(**y, max_new_tokens=NEW)
        if sliding and s.place == "inside":
            return  # static caches with sliding windows are refused there
        s.model.generate(**x, max_new_tokens=2, **{CACHE: cache})
        cache.reset()
        same(s.model.generate(**y, max_new_tokens=NEW, **{CACHE: cache}), wanted)


@case(CACHES, "a cache of which rows were chosen", before=CHANGED, inside=CHANGED)
def _(s: Subject) -> None:
    x = s.inputs(1, 1)
    with s.prune():
        first = s.model.generate(**x, max_new_tokens=3, return_dict_in_generate=True)
        cache, second = cache_of(first), follow(x, first.sequences)
        cache.batch_select_indices(torch.tensor([1, 0]))
        s.model.generate(**second, **{CACHE: cache}, max_new_tokens=NEW)


@case(CACHES, "a cache of another block", before=OTHER, inside=OTHER)
def _(s: Subject) -> None:
    x = s.inputs()
    with s.prune():
        first = s.model.generate(**x, max_new_tokens=3, return_dict_in_generate=True)
    with s.prune():
        s.model.generate(**follow(x, first.sequences), **{CACHE: cache_of(first)}, max_new_tokens=NEW)
