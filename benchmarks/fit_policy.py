"""What the curves of a policy cost: layers replayed from where a plan begins, against as many full prefills.

    python benchmarks/fit_policy.py

The model, prompt and clock of ``in_llm.py``. Twelve depths of attention, eleven of the MLP (there are no more in twelve
layers) and twelve numbers of visual tokens, as ``tokenprune fit-policy`` varies them; the last are whole prefills of
shorter prompts, without the time of a pruner.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from in_llm import AFTER, BEFORE, IMAGE, Run, build, seconds
from machine import facts
from rich.console import Console
from rich.table import Table

from tokenprune.core.plan import Operations
from tokenprune.core.sizes import ModelSpec
from tokenprune.engine.decoder.inside_plan import PromptTokens
from tokenprune.engine.decoder.replay import Replay
from tokenprune.policies.fit import grid
from tokenprune.policies.fit_config import FitConfig
from tokenprune.pruners.dop.depths import Depths
from tokenprune.sweeps.config import Part
from tokenprune.towers.sizes import decoder_spec


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--points", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/fit_policy.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = build(arguments.width, arguments.layers)
    run = Run(model, None, None)
    spec = ModelSpec(decoder_spec(model.config.text_config), 1000, IMAGE)
    visual = torch.zeros(1, run.embeds.shape[1], dtype=torch.bool)
    visual[:, BEFORE : BEFORE + IMAGE] = True
    number, group = (visual.long().cumsum(1) - 1).masked_fill(~visual, -1), torch.zeros_like(visual, dtype=torch.long)
    prompt = PromptTokens(visual, number, [()], lambda: torch.zeros(1, dtype=torch.long), group)
    seconds(run.native)  # warm-up
    whole, replay = seconds(lambda: Replay(model, {"inputs_embeds": run.embeds}, prompt, 1))
    spent: dict[str, list[float]] = {}
    part = Part("scenes")  # neither questions nor pruner are used
    config = FitConfig(task=part, pruner=part, budget={"average_tokens": (64,)}, points=arguments.points)
    points = grid(spec, config)
    for name, value in points:
        if name == "tokens":
            short = torch.cat([run.embeds[:, : BEFORE + value], run.embeds[:, -AFTER:]], 1)
            used, _ = seconds(lambda x=short: model(inputs_embeds=x, use_cache=False, logits_to_keep=1))
        else:
            depths = {"attention": spec.llm.layers, "mlp": spec.llm.layers, name: value}
            plan = Depths(keep=1, **depths).normalised(spec.llm.layers).plan(spec, 1)
            used, _ = seconds(lambda p=plan: replay.under(Operations(p.active[..., 1:])))
        spent.setdefault(name, []).append(used)
    total = whole + sum(map(sum, spent.values()))
    table = Table("curve", "points", "of a full prefill, mean", title=f"{arguments.layers} layers")
    for name, values in spent.items():
        table.add_row(name, str(len(values)), f"{sum(values) / len(values) / whole:.3f}")
    table.add_row("all, with the unpruned one", str(len(points)), f"{total / (len(points) * whole):.3f}")
    Console().print(table)
    shares = {name: [value / whole for value in values] for name, values in spent.items()}
    result = {
        **facts(arguments.threads),
        "points": len(points),
        "of_naive": total / (len(points) * whole),
        "of_a_prefill": shares,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
