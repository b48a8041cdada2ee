"""What pruning between the blocks of a ViT costs on top of the work that is left.

    python benchmarks/timm_vit.py

ViT-S/16 of random weights at 224 pixels, 196 patches of 197 tokens; patches leave at the input of one block, or of
three. ``bound``: the model's own modules called one after another, with the patches that our run kept taken by index;
nothing is selected, so that what is over the bound is selection, signals and hooks. All runs of a point take turns;
times are CPU time, and ratios are medians over the turns. ``flops``: of the blocks, share of the unpruned.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
from machine import facts
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from tokenprune import ScorePruner, VisualTokens, create_pruner, prune_vit
from tokenprune.core.signals import Signal, TowerAttention
from tokenprune.towers.timm_sizes import vit_spec


@dataclass(frozen=True)
class ClsAttention(ScorePruner):
    """Keeps the patches to which the CLS token attends most, as EViT scores them (https://arxiv.org/abs/2202.07800)."""

    @property
    def requires(self) -> frozenset[Signal]:
        """The attention of the block before."""
        return frozenset({TowerAttention("cls")})

    def score(self, tokens: VisualTokens) -> Tensor:
        """(B, N), mean over the heads."""
        return tokens.signal(TowerAttention("cls")).mean(1)


PRUNERS = {
    "random": create_pruner("random"),
    "uniform": create_pruner("uniform"),
    "divprune": create_pruner("divprune"),
    "cdpruner, none": create_pruner("cdpruner", conditioning="none"),
    "CLS attention": ClsAttention(),
}
STAGES = {"half at 4": ((4,), 0.5), "0.7 at 3, 6, 9": ((3, 6, 9), 0.343)}


def bound(model: Any, pixels: Tensor, keeps: dict[int, Tensor]) -> Tensor:
    """The blocks by hand on the patches that are left."""
    hidden = model.norm_pre(model._pos_embed(model.patch_embed(pixels)))
    prefix = model.num_prefix_tokens
    left = torch.arange(hidden.shape[1] - prefix).expand(len(pixels), -1)
    places = {}
    for layer, keep in keeps.items():  # which of those that arrive stay, in rows of the flattened batch
        places[layer] = torch.stack([torch.searchsorted(a, b) for a, b in zip(left, keep, strict=True)])
        places[layer] = (places[layer] + torch.arange(len(pixels))[:, None] * left.shape[1]).flatten()
        left = keep
    for index, block in enumerate(model.blocks):
        if index in places:
            rest = hidden[:, prefix:].flatten(0, 1).index_select(0, places[index])
            hidden = torch.cat([hidden[:, :prefix], rest.view(len(pixels), -1, rest.shape[1])], 1)
        hidden = block(hidden)
    logits: Tensor = model.forward_head(model.norm(hidden))
    return logits


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU time of a call, which other programs disturb less than its wall time, and its result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


@torch.inference_mode()
def point(model: Any, pixels: Tensor, pruner: str, stages: str, turns: int) -> dict[str, object]:
    """All runs of one point, turn by turn, after one turn to warm up."""
    (layers, ratio), samples = STAGES[stages], []
    for _ in range(turns + 1):
        whole, _ = seconds(lambda: model(pixels))
        with prune_vit(model, PRUNERS[pruner], layer=layers, keep_ratio=ratio) as trace:
            ours, logits = seconds(lambda: model(pixels))
        least, expected = seconds(lambda keeps=trace.stages: bound(model, pixels, keeps))
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        samples.append({"ms": 1e3 * ours, "of_unpruned": ours / whole, "of_bound": ours / least})
    llm, prefix = vit_spec(model).llm, model.num_prefix_tokens
    left, counts = model.patch_embed.num_patches, []
    for index in range(llm.layers):
        left = trace.stages[index].shape[1] if index in trace.stages else left
        counts.append(left)
    flops = sum(llm.layer_flops(*[prefix + count] * 3) for count in counts)
    share = flops / (llm.layers * llm.layer_flops(*[prefix + model.patch_embed.num_patches] * 3))
    medians = {name: median(sample[name] for sample in samples[1:]) for name in samples[0]}
    return {"method": pruner, "stages": stages, "batch": len(pixels), "flops": share, **medians}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/timm_vit.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = timm.create_model(arguments.model, pretrained=False).eval()
    size = model.patch_embed.img_size
    points = [(batch, stages, pruner) for batch in arguments.batches for stages in STAGES for pruner in PRUNERS]
    results = []
    for batch, stages, pruner in track(points, "measuring"):
        pixels = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))
        results.append(point(model, pixels, pruner, stages, arguments.turns))
    table = Table("method", "stages", "batch", "flops", "ms", "of unpruned", "of bound", title=arguments.model)
    for row in results:
        table.add_row(*(f"{x:.3f}" if isinstance(x, float) else str(x) for x in row.values()))
    Console(width=100).print(table)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    result = {**facts(arguments.threads), "timm": timm.__version__, "model": arguments.model, "results": results}
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
