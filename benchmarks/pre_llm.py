"""What pruning before the LLM costs on top of the work that is left: ours against the model on as many tokens.

    python benchmarks/pre_llm.py
    python benchmarks/pre_llm.py --width 4096 --heads 32 --layers 1 --dtype bfloat16     the width of a 7B model

A LLaVA of random weights, 576 visual tokens, 40 text tokens. ``ours``: from the projector's features to the first
token, selection and all. ``native``: the model without pruning on embeddings of as many tokens. ``framework`` is ours
without the selection, of native. Runs take turns; ratios are medians over the turns, of CPU time, but selection and
framework of wall time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

import torch
from in_llm import IMAGE, add_sizes, config_of_llava, seconds
from machine import facts
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tokenprune import Budget, create_pruner
from tokenprune.adapters.base import ModelAdapter
from tokenprune.engine.session import Session
from tokenprune.engine.untrained import untrained

TEXT = 40
PRUNERS = {
    "random": create_pruner("random"),
    "divprune": create_pruner("divprune"),
    "cdpruner": create_pruner("cdpruner", conditioning="prompt_embedding"),
}


@torch.inference_mode()
def point(adapter: ModelAdapter, pruner: Any, keep: int, turns: int) -> dict[str, float]:
    """Medians of one point."""
    model = adapter.model
    inputs = {
        name: x.to(model.dtype) if x.is_floating_point() else x for name, x in adapter.nominal_inputs(TEXT).items()
    }
    encoded = Session(adapter).encode(inputs, pruner.requires)
    embeds = 0.02 * torch.randn(1, keep + TEXT, model.config.text_config.hidden_size, dtype=model.dtype)
    samples: list[dict[str, float]] = []

    def ours() -> float:
        encoded.made.clear()  # signals of an earlier turn
        pruned = Session(adapter).prune_inputs(
            inputs, pruner, Budget(keep_tokens=keep), ["What is this?"], encoded=encoded
        )
        Session(adapter).prefill(pruned)
        return pruned.seconds["selection"]

    for _ in range(turns + 1):
        spent, selection = seconds(ours)
        native, _ = seconds(lambda: model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1))
        samples.append(
            {
                "ours_ms": 1e3 * spent.cpu,
                "of_native": spent.cpu / native.cpu,
                "selection_of_ours": selection / spent.wall,
                "framework_of_native": (spent.wall - selection) / native.wall,
            }
        )
    return {name: median(sample[name] for sample in samples[1:]) for name in samples[0]}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pre_llm.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = config_of_llava(arguments.width, arguments.layers, arguments.heads)
    adapter = untrained("benchmark", config, dtype=arguments.dtype).load().adapter
    points = [(name, keep) for name in PRUNERS for keep in (IMAGE, 192, 64)]
    results = [
        {"pruner": name, "keep": keep, **point(adapter, PRUNERS[name], keep, arguments.turns)}
        for name, keep in track(points, "measuring")
    ]
    parameters = sum(weight.numel() for weight in adapter.model.get_decoder().parameters())
    table = Table(
        "pruner", "tokens", "ours ms", "of native", "selection", "framework", title=f"{parameters / 1e6:.0f} M"
    )
    for row in results:
        table.add_row(row["pruner"], str(row["keep"]), *(f"{value:.3f}" for value in list(row.values())[2:]))
    Console().print(table)
    result = {**facts(1), "parameters": parameters, "dtype": arguments.dtype, "turns": arguments.turns}
    arguments.out.write_text(json.dumps({**result, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
