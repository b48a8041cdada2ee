"""Published models at full size, counted: what PyTorch counts while transformers' own model runs, beside ``exact``.

    python benchmarks/counted_flops.py                 # all model cards; several minutes
    python benchmarks/counted_flops.py llava-next-7b

Weights have shapes alone (fake tensors), so that no memory and no network are needed; pixels and ids are real. For each
model: a whole forward from pixels to logits, a decoded token, and a forward that a pruner shortened. The features that
pruners see there are random numbers of the right shape, as the tower gives none.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from counted_parts import Parts, counted
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_map_only
from transformers import AutoModelForImageTextToText

from tokenprune.adapters.base import ModelAdapter
from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.adapters.registry import adapter_class
from tokenprune.core.budget import Budget
from tokenprune.core.plan import OperationPlan
from tokenprune.core.sizes import ModelSpec
from tokenprune.costs.flops import llm_decode_flops, llm_prefill_flops, lm_head_flops, projector_flops, vision_flops
from tokenprune.costs.model_card import ModelCard, card_names, load_card
from tokenprune.engine.loading import config_of
from tokenprune.engine.session import Session
from tokenprune.pruners.base import Pruner, create_pruner

FILE = Path(__file__).parent / "results/counted_flops.json"
TEXT = 40  # tokens of the prompt besides those of the image; newline tokens of LLaVA's successors come on top
SHARE = 9  # of the visual tokens, one of so many stays when pruned
PARTS = ("tower", "projector", "layers", "head", "step")
MARKER = 7  # a token


def without_weights(config: Any) -> tuple[Any, int]:
    """A model whose weights have shapes alone, and its number of parameters."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config).eval()
    parameters = sum(weight.numel() for weight in model.parameters())
    with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
        return model.to_empty(device="cpu"), parameters


def closed(spec: ModelSpec, plan: OperationPlan, text: int) -> dict[str, int]:
    """``exact``, part by part."""
    layers, step = llm_prefill_flops(spec, plan, text), llm_decode_flops(spec, plan, text)
    parts = (vision_flops(spec), projector_flops(spec), layers, lm_head_flops(spec), step)
    return dict(zip(PARTS, parts, strict=True))


def ran(parts: Parts, forwards: int) -> dict[str, int]:
    """What was counted; each forward has the LM head once."""
    assert parts.rest() == 0, f"{parts.rest()} FLOPs ran in no part"
    assert len(parts.steps) == forwards
    counts = (parts.tower, parts.projector, parts.steps[0], parts.head // forwards, *parts.steps[1:])
    return dict(zip(PARTS, counts, strict=False))


def whole(model: Any, inputs: dict[str, Tensor]) -> dict[str, int]:
    """Count a forward from pixels, and one of a token after it."""
    with counted(model) as parts:
        out = model(**inputs, logits_to_keep=1, use_cache=True)
        model(input_ids=torch.full((1, 1), MARKER), logits_to_keep=1, **{CACHE: cache_of(out)})
    return ran(parts, 2)


def pruner_of(spec: ModelSpec) -> tuple[Pruner, Budget]:
    """Before the LLM, and operations inside it."""
    depths = {"attention_depth": 3 * spec.llm.layers // 4, "mlp_depth": spec.llm.layers // 2}
    return create_pruner("dop", base="uniform", **depths), Budget(keep_tokens=spec.visual_tokens // SHARE)


def adapter_of(model: Any) -> ModelAdapter:
    """The adapter of a model without a processor."""
    return adapter_class(model.config.model_type)(model, stand_in(model.config))


@torch.no_grad()
def pruned(model: Any, inputs: dict[str, Tensor]) -> dict[str, int]:
    """Count a forward that is really pruned."""
    adapter = adapter_of(model)
    own = model.base_model.get_image_features

    @functools.wraps(own)
    def random_features(*args: Any, **options: Any) -> Any:
        output = own(*args, **options)
        return tree_map_only(Tensor, lambda x: torch.randn(x.shape), output)

    pruner, budget = pruner_of(adapter.spec)
    model.base_model.get_image_features = random_features
    with counted(model) as parts:
        Session(adapter).prefill(Session(adapter).prune_inputs(inputs, pruner, budget, questions=[""]))
    return ran(parts, 1)


def stand_in(config: Any) -> Any:
    """What an adapter asks of a processor."""

    def tokenizer(*_: Any, **__: Any) -> dict[str, list[int]]:
        return {"input_ids": [MARKER]}

    tokenizer.pad_token_id = 0  # type: ignore[attr-defined]
    options = {"image_token_id": config.image_token_id, "image_processor": None, "global_image_token": "marker"}
    return SimpleNamespace(tokenizer=tokenizer, **options)


def expected(spec: ModelSpec, text: int) -> dict[str, Any]:
    """What the closed form says, unpruned and pruned to ``kept`` tokens."""
    (pruner, budget), total = pruner_of(spec), spec.visual_tokens
    plan = pruner.plan(spec, pruner.alive(spec, pruner.schedule(spec, budget, total), total), total)
    everything, shorter = closed(spec, OperationPlan.drop_at(spec, (), (), total), text), closed(spec, plan, text)
    return {
        "exact": everything,
        "kept": budget.keep_tokens,
        "exact_pruned": {name: shorter[name] for name in PARTS[:4]},
    }


def count(card: ModelCard) -> dict[str, Any]:
    """A row of the table: FLOPs as counted and as said, unpruned and pruned."""
    spec = card.spec
    model, parameters = without_weights(config_of(card.config))
    inputs = adapter_of(model).nominal_inputs(TEXT)
    text = inputs["input_ids"].shape[1] - spec.visual_tokens
    row = {"card": card.name, "billions": parameters / 1e9, "visual": spec.visual_tokens, "text": text}
    return {**row, **expected(spec, text), "counted": whole(model, inputs), "counted_pruned": pruned(model, inputs)}


def table(rows: Iterable[dict[str, Any]]) -> str:
    """Markdown; TFLOPs as counted, and by how many FLOPs ``exact`` differs, over all parts."""
    header = (
        "card|parameters, B|visual + other tokens|tower|projector|layers|LM head|step, GFLOPs|pruned to|layers|off by"
    )
    lines = [header.split("|")]
    lines.append(["---"] + ["---:"] * (len(lines[0]) - 1))
    for row in rows:
        counted_, shorter = row["counted"], row["counted_pruned"]
        both = [(row["counted"], row["exact"]), (shorter, row["exact_pruned"])]
        off = sum(abs(ran[part] - said[part]) for ran, said in both for part in said)
        cells = [f"{row['billions']:.2f}", f"{row['visual']} + {row['text']}"]
        cells += [f"{counted_[part] / 1e12:.4g}" for part in PARTS[:4]]
        cells += [f"{counted_['step'] / 1e9:.4g}", str(row["kept"]), f"{shorter['layers'] / 1e12:.4g}", str(off)]
        lines.append([row["card"], *cells])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, print the table, and keep it if it is of all cards."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cards", nargs="*", help="names of model cards; all if none are given")
    chosen = parser.parse_args(arguments).cards
    logging.getLogger("transformers").setLevel(logging.ERROR)
    rows = [count(load_card(name)) for name in chosen or card_names()]
    print(table(rows))
    if not chosen:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        FILE.write_text(json.dumps({**versions, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
