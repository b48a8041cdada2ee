"""What pruning inside the LLM costs on top of the work that is left: ours against the same layer lengths without hooks.

    python benchmarks/in_llm.py
    python benchmarks/in_llm.py --width 4096 --heads 32 --layers 4 --dtype bfloat16     the width of a 7B model

A LLaVA of random weights, 576 visual tokens, 40 text tokens. ``bound``: the model's own decoder layers, called one
after another on hidden states that are cut to the lengths of the plan, with masks and position embeddings made
beforehand; nothing is selected. In decoding the bound is the model itself, without hooks, on a cache whose layers have
these lengths. For ``dop`` (depths of attention and MLP, all 576 tokens) the bound runs a layer's MLP on the last rows
alone where visual tokens do not pass it, and ``flops`` is the plan's share of the unpruned FLOPs. All runs of a point
take turns; times are CPU time, and ratios are medians over the turns. ``selection``
is the share of the prefill that the pruner and its signals take, ``framework`` what is left without it, of the bound;
these two are of wall time, as selections are timed so.
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

import torch
from machine import facts
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from transformers import CLIPVisionConfig, DynamicCache, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tokenprune import Budget, Pruner, create_pruner
from tokenprune.adapters.cache_argument import CACHE, cache_of
from tokenprune.core.plan import Operation, OperationPlan
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import PRE_LLM
from tokenprune.costs.flops import llm_prefill_flops
from tokenprune.engine.decoder.hooks import InsideLLM
from tokenprune.engine.decoder.inside_plan import InsidePlan, PromptTokens
from tokenprune.towers.sizes import decoder_spec

IMAGE, BEFORE, AFTER = 576, 5, 35  # visual tokens, text tokens before and after them


def methods(layers: int) -> dict[str, tuple[Pruner, Budget | None]]:
    """What is measured, by name; the depths of operation pruning are shares of the layers."""
    depths = [(3 * layers // 4, layers // 2), (layers // 2, layers // 4), (layers // 3, max(1, layers // 12))]
    return {
        "fastv 144": (create_pruner("fastv", layer=2), Budget(keep_tokens=144)),
        "fastv 64": (create_pruner("fastv", layer=2), Budget(keep_tokens=64)),
        "sparsevlm 192": (create_pruner("sparsevlm", preset=192), None),
        "sparsevlm 64": (create_pruner("sparsevlm", preset=64), None),
        "sparsevlm plus 64": (create_pruner("sparsevlm", version="plus", preset=64), None),
        "pyramiddrop": (create_pruner("pyramiddrop"), Budget(keep_ratio=0.125)),
        "dart 64": (create_pruner("dart", layer=2), Budget(keep_tokens=64)),
    } | {
        f"dop {attention}, {mlp}": (
            create_pruner("dop", base="random", attention_depth=attention, mlp_depth=mlp),
            Budget(keep_ratio=1.0),
        )
        for attention, mlp in depths
    }


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """The options that say which LLM is measured."""
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, help="default: one for 64 of the width")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")


def config_of_llava(width: int, layers: int, heads: int | None = None) -> LlavaConfig:
    """A LLaVA with a small vision tower."""
    text = LlamaConfig(
        vocab_size=1000,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads or width // 64,
    )
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=336, patch_size=14
    )
    return LlavaConfig(vision_config=vision, text_config=text, image_token_index=999, image_seq_length=IMAGE)


def build(width: int, layers: int, heads: int | None = None, dtype: torch.dtype = torch.float32) -> Any:
    """The model, of random weights."""
    torch.manual_seed(0)
    config = config_of_llava(width, layers, heads)
    model = LlavaForConditionalGeneration(config).to(dtype).eval()
    model.generation_config.pad_token_id = 0
    return model


class Run:
    """One prompt of one model, with what a point needs to run it in all ways."""

    def __init__(self, model: Any, pruner: Pruner | None, budget: Budget | None) -> None:
        self.model, self.decoder = model, model.get_decoder()
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(1, 900, (1, BEFORE + IMAGE + AFTER), generator=generator)
        ids[:, BEFORE : BEFORE + IMAGE] = 999
        self.embeds = model.get_input_embeddings()(ids).detach()
        noise = torch.randn(1, IMAGE, self.embeds.shape[2], generator=generator)
        self.embeds[:, BEFORE : BEFORE + IMAGE] = 0.02 * noise
        self.next = ids[:, :1]
        self.lengths, self.inside, self.flops = [ids.shape[1]] * len(self.decoder.layers), None, 1.0
        self.passing = self.lengths
        if pruner is not None:
            self._plan(pruner, budget or pruner.budget, ids == 999)

    def _plan(self, pruner: Pruner, budget: Budget | None, visual: Tensor) -> None:
        spec = ModelSpec(decoder_spec(self.model.config.text_config), 1000, IMAGE)
        assert budget is not None
        counts = pruner.schedule(spec, budget, IMAGE)
        plan = pruner.plan(spec, pruner.alive(spec, counts, IMAGE), IMAGE)
        self.lengths = [BEFORE + AFTER + plan.tokens(i, Operation.ATTENTION_SOURCE) for i in range(spec.llm.layers)]
        self.passing = [BEFORE + AFTER + plan.tokens(i, Operation.MLP) for i in range(spec.llm.layers)]
        whole = OperationPlan.drop_at(spec, (), (), IMAGE)
        costs = [llm_prefill_flops(spec, each, BEFORE + AFTER) for each in (plan, whole)]
        self.flops = costs[0] / costs[1]
        number = (visual.long().cumsum(1) - 1).masked_fill(~visual, -1)
        steps = [step for step in pruner.steps(spec) if step.stage != PRE_LLM]
        prompt = PromptTokens(
            visual, number, [counts], lambda: torch.zeros(1, dtype=torch.long), torch.zeros_like(number)
        )
        operations = pruner.operations(spec)
        active = operations.active if operations else None
        self.inside = InsideLLM(self.model, InsidePlan(tuple(steps), prompt, active))

    def native(self) -> DynamicCache:
        """The model's own forward; returns its cache."""
        output = self.model(inputs_embeds=self.embeds, use_cache=True, logits_to_keep=1)
        return cache_of(output)

    def ours(self) -> DynamicCache:
        """The same while pruning inside."""
        assert self.inside is not None
        with self.inside:
            return self.native()

    def bound(self) -> DynamicCache:
        """Layers on their own, at the plan's lengths."""
        cache, hidden = DynamicCache(config=self.decoder.config), self.embeds
        positions = torch.arange(hidden.shape[1])[None]
        cos, sin = self.decoder.rotary_emb(hidden, positions)
        for layer, length, passing in zip(self.decoder.layers, self.lengths, self.passing, strict=True):
            if length != hidden.shape[1]:
                hidden, cos, sin = (x[:, -length:].contiguous() for x in (hidden, cos, sin))
            options = {"attention_mask": None, "position_embeddings": (cos, sin), CACHE: cache}
            if passing == length:
                hidden = layer(hidden, position_ids=positions[:, :length], use_cache=True, **options)
                continue
            hidden = hidden + layer.self_attn(layer.input_layernorm(hidden), **options)[0]
            rows = hidden[:, -passing:]
            hidden[:, -passing:] = rows + layer.mlp(layer.post_attention_layernorm(rows))
        self.model.lm_head(self.decoder.norm(hidden)[:, -1:])
        return cache

    def decode(self, cache: DynamicCache, number: int, *, pruned: bool) -> None:
        """A few tokens on a cache."""

        def steps() -> None:
            for step in range(number):
                position = torch.full((1, 1), self.embeds.shape[1] + step)
                self.model(input_ids=self.next, **{CACHE: cache}, position_ids=position, use_cache=True)

        if pruned and self.inside is not None:
            with self.inside:
                steps()
        else:
            steps()


@dataclass(frozen=True)
class Spent:
    """Seconds of a call: of the process, which other programs disturb less, and on the wall."""

    cpu: float
    wall: float


def seconds(work: Callable[[], Any]) -> tuple[Spent, Any]:
    """What a call takes, and its result."""
    start = time.process_time(), time.perf_counter()
    result = work()
    return Spent(time.process_time() - start[0], time.perf_counter() - start[1]), result


@torch.inference_mode()
def point(model: Any, pruner: Pruner | None, budget: Budget | None, turns: int, number: int) -> dict[str, object]:
    """All runs of one point, turn by turn, after one turn to warm up."""
    plain, run = Run(model, None, None), Run(model, pruner, budget)
    samples: list[dict[str, float]] = []
    for _ in range(turns + 1):
        before = run.inside.seconds["selection"] if run.inside else 0.0
        whole, cache = seconds(plain.native)
        whole_step, _ = seconds(lambda c=cache: plain.decode(c, number, pruned=False))
        bound, cache = seconds(run.bound)
        bound_step, _ = seconds(lambda c=cache: run.decode(c, number, pruned=False))
        ours, cache = seconds(run.ours if run.inside else run.native)
        held = [layer.keys.shape[2] for layer in cache.layers]
        ours_step, _ = seconds(lambda c=cache: run.decode(c, number, pruned=True))
        selection = run.inside.seconds["selection"] - before if run.inside else 0.0
        assert held == run.lengths
        samples.append(
            {
                "prefill_ms": 1e3 * ours.cpu,
                "prefill_of_unpruned": ours.cpu / whole.cpu,
                "flops": run.flops,
                "prefill_of_bound": ours.cpu / bound.cpu,
                "selection_of_prefill": selection / ours.wall,
                "framework_of_bound": (ours.wall - selection) / bound.wall,
                "step_ms": 1e3 * ours_step.cpu / number,
                "step_of_unpruned": ours_step.cpu / whole_step.cpu,
                "step_of_bound": ours_step.cpu / bound_step.cpu,
            }
        )
    return {name: median(sample[name] for sample in samples[1:]) for name in samples[0]} | {"lengths": run.lengths}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sizes(parser)
    parser.add_argument("--steps", type=int, default=16, help="tokens decoded in a turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--only", default="", help="methods whose names contain this, and the unpruned model")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/in_llm.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = build(arguments.width, arguments.layers, arguments.heads, getattr(torch, arguments.dtype))
    points: dict[str, tuple[Pruner | None, Budget | None]] = {"unpruned": (None, None)}
    points |= {name: what for name, what in methods(arguments.layers).items() if arguments.only in name}
    results = [
        {"method": name, **point(model, *what, arguments.turns, arguments.steps)}
        for name, what in track(points.items(), "measuring")
    ]
    parameters = sum(weight.numel() for weight in model.get_decoder().parameters())
    columns = (
        "prefill ms",
        "of unpruned",
        "flops",
        "of bound",
        "selection",
        "framework",
        "step ms",
        "of unpruned",
        "of bound",
    )
    table = Table("method", *columns, title=f"{parameters / 1e6:.0f} M parameters, {arguments.layers} layers")
    for row in results:
        values = [value for name, value in row.items() if name not in ("method", "lengths")]
        table.add_row(row["method"], *(f"{value:.1f}" if value > 9 else f"{value:.3f}" for value in values))
    Console(width=120).print(table)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    result = {
        **facts(arguments.threads),
        "parameters": parameters,
        "dtype": arguments.dtype,
        "turns": arguments.turns,
        "results": results,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
