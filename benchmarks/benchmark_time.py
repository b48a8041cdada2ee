"""How long a sweep of benchmarks takes and what memory it needs: an ESTIMATE from FLOPs and bytes, nothing is run.

    python benchmarks/benchmark_time.py configs/benchmarks/llava15.yaml

Counted are the FLOPs of ``tokenprune flops`` for one nominal image and ``TEXT`` other tokens a question. Assumed are
the numbers in capitals below. Not in it: reading and decoding pictures, choosing tokens, Python, a longer prompt.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tokenprune.adapters.registry import ADAPTERS, adapter_class
from tokenprune.bench.flops_table import Case, pruned_case, unpruned_case
from tokenprune.core.errors import ConfigError, ModelError
from tokenprune.core.sizes import ModelSpec
from tokenprune.costs import flops
from tokenprune.costs.memory import planned_kv_bytes_by_layer
from tokenprune.costs.model_card import card_names, load_card
from tokenprune.engine.loading import Checkpoint, config_of
from tokenprune.pruners.base import create_pruner
from tokenprune.sweeps.build import Cell, build_all
from tokenprune.sweeps.grid import load_sweep
from tokenprune.sweeps.model_config import ModelConfig
from tokenprune.tasks.benchmarks import BENCHMARKS

TEXT = 60  # tokens of a prompt besides the visual ones
STEPS = 5  # decoding steps of a batch: its longest answer, of a word or a letter
SHARE = 0.4  # of a card's peak that matrix products reach, assumed
# Peak of dense half precision in FLOPs a second, and of memory in bytes a second, as the makers print them.
CARDS = {"24 GB (RTX 4090)": (165e12, 1.01e12), "80 GB (A100)": (312e12, 2.04e12)}
# Rows of the published sets, as their authors count them; nothing was downloaded to check.
ROWS = {
    "pope": 9_000, "gqa": 12_578, "mme": 2_374, "mmbench_en_dev_static": 4_329, "scienceqa_img": 2_017,
    "textvqa_val": 5_000, "vizwiz_vqa_val": 4_319, "vqav2_val": 214_354, "seedbench": 17_990, "ai2d": 3_088,
    "chartqa": 2_500, "docvqa_val": 5_349, "ocrbench": 1_000, "mmmu_val": 900, "mmstar": 1_500,
}  # fmt: skip


def card_checkpoint(config: ModelConfig) -> Checkpoint:
    """The checkpoint of a published model as its card has it; nothing of the hub is needed."""
    (card,) = [card for card in map(load_card, card_names()) if card.hub == config.path]
    model = config_of(card.config)
    adapter = adapter_class(model.model_type)
    assert adapter is ADAPTERS.get(config.name)
    spec, device = adapter.spec_from_config(model), torch.device("cpu")
    return Checkpoint(str(config.path), adapter, model, spec, device, {}, config.text_tower, config.scope)


@dataclass(frozen=True)
class Work:
    """Sums over a sweep: questions, answers, FLOPs of encoders and of prefills, and decoding steps."""

    questions: int
    answers: int
    encoder: float
    prefill: float
    steps: float


def case_of(spec: ModelSpec, cell: Cell) -> Case:
    """The tokens of a cell; of a method whose number depends on the picture, those of even spacing."""
    if cell.budget is None:
        return unpruned_case(spec)
    try:
        return pruned_case(spec, cell.pruner, cell.budget, TEXT)
    except (ConfigError, ModelError):
        return pruned_case(spec, create_pruner("uniform"), cell.budget, TEXT)


def works(path: str) -> Iterator[tuple[str, Work]]:
    """The work of each benchmark of a sweep file."""
    asked = load_sweep(path, ["max_new_tokens=128"])  # else lmms-eval would be asked
    for experiment in build_all(asked.runs, asked.names, card_checkpoint):
        spec, task = experiment.model.spec, experiment.task
        if BENCHMARKS[task.task].media == "video":
            raise SystemExit(f"{task.task}: a video has no nominal size, so there is no estimate")
        rows = min(ROWS[task.task], task.num_samples or ROWS[task.task])
        prefill = sum(flops.llm_prefill_flops(spec, case_of(spec, cell).plan, TEXT) for cell in experiment.cells)
        encoder = flops.vision_flops(spec) + flops.projector_flops(spec)  # once for all cells of a batch
        batches, cells = rows / experiment.config.batch_size, len(experiment.cells)
        yield task.task, Work(rows, rows * cells, rows * encoder, rows * prefill, batches * cells * STEPS)


def main() -> None:
    """Print the estimate of a sweep file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep")
    path = parser.parse_args().sweep
    config = load_sweep(path).runs[0]
    (card,) = [card for card in map(load_card, card_names()) if card.hub == config.model.path]
    weights = 2e9 * card.billions
    names = list(CARDS)
    print("ESTIMATE, not measured. Hours on one card:")
    print("| benchmark | questions | answers | PFLOPs | " + " | ".join(names) + " |")
    print("|---|" + "---:|" * (3 + len(names)))
    total = [0.0] * len(names)
    for task, work in works(path):
        hours = [
            ((work.encoder + work.prefill) / (SHARE * peak) + work.steps * weights / bandwidth) / 3600
            for peak, bandwidth in CARDS.values()
        ]
        total = [a + b for a, b in zip(total, hours, strict=True)]
        pflops = (work.encoder + work.prefill) / 1e15
        cells = [f"{work.questions:,}", f"{work.answers:,}", f"{pflops:,.0f}", *map("{:.1f}".format, hours)]
        print(f"| {task} | {' | '.join(cells)} |")
    print(f"| all | | | | {' | '.join(map('{:.0f}'.format, total))} |")
    cache = sum(planned_kv_bytes_by_layer(card.spec, unpruned_case(card.spec).plan, TEXT, 2))
    print(f"\nWeights {weights / 1e9:.1f} GB; cache of one unpruned question {cache / 1e9:.3f} GB, ", end="")
    print(f"of a batch of {config.batch_size} {config.batch_size * cache / 1e9:.1f} GB. Activations come on top.")


if __name__ == "__main__":
    main()
