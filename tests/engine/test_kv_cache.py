"""What a record says of a cell's cost is what the cache of its prompts really holds, and what the plan foresaw."""

import dataclasses
from statistics import fmean

import pytest
import torch

from tokenprune.adapters.cache_argument import cache_of
from tokenprune.core.plan import OperationPlan
from tokenprune.costs.flops import llm_prefill_flops
from tokenprune.costs.memory import planned_kv_bytes_by_layer
from tokenprune.engine.session import Session
from tokenprune.pruners.base import PRUNERS
from tokenprune.sweeps import runner
from tokenprune.sweeps.build import build
from tokenprune.sweeps.config import parse_config
from tokenprune.testing.checkpoints import save_llava

BUDGET, QUESTIONS = 9, 8
SPARSE = {"name": "sparsevlm"}
VARIANTS = [
    {"name": "random", "layer": 1},
    {"name": "fastv", "layer": 3},
    {**SPARSE, "version": "plus"},
    {**SPARSE, "layers": [0, 1, 2]},
    {**SPARSE, "preset": 64},
    {"name": "compose", "pruners": [{"name": "divprune"}, {"name": "random", "layer": 1}, {"name": "fastv"}]},
    {"name": "compose", "pruners": [{"name": "uniform", "keep_tokens": 15}, {**SPARSE, "keep_ratio": 0.2}]},
]
ADAPTIVE = {**SPARSE, "count": "rank", "rank_scale": 3.0}  # no plan tells how many it keeps


@dataclasses.dataclass(frozen=True)
class Weighed:
    """A cell and what its prompts, alone one after another, really left in the cache.

    ``visual`` are the visual tokens in each layer, ``text`` all others, ``by_layer`` bytes of the first.
    """

    cell: object
    metrics: dict
    spec: object
    visual: list[list[int]]
    text: list[int]
    by_layer: list[int]


@pytest.fixture(scope="module")
def weighed(tmp_path_factory):
    """All cells of one run, which has every pruner at one budget."""
    folder = tmp_path_factory.mktemp("kv")
    *rest, last = [*PRUNERS.names(), *VARIANTS, ADAPTIVE]
    config = parse_config(
        {
            "model": {"name": "llava", "path": str(save_llava(folder / "llava"))},
            "task": {"name": "scenes", "num_samples": QUESTIONS},
            "baselines": rest,
            "pruner": last,
            "budget": {"keep_tokens": BUDGET},
            "batch_size": 2,
            "max_new_tokens": 2,
            "timing_repeats": 0,
            "output": str(folder / "runs"),
        }
    )
    experiment, outcome = build(config), runner.run(config)
    assert not outcome.failed
    adapter = experiment.model.load().adapter
    return [
        weigh(adapter, cell, record.metrics, outcome.samples)
        for cell, record in zip(experiment.cells, outcome.records, strict=True)
    ]


def weigh(adapter, cell, metrics, samples):
    visual, text, by_layer = [], [], []
    for sample in samples:
        prepared = Session(adapter).prepare([sample])
        text.append(int((prepared.inputs["input_ids"] != adapter.model.config.image_token_id).sum()))
        pruned = Session(adapter).prune_inputs(prepared.inputs, cell.pruner, cell.budget, prepared.questions)
        layers = cache_of(Session(adapter).prefill(pruned).output).layers
        visual.append([layer.keys.shape[2] - text[-1] for layer in layers])
        by_layer.append([4 * (layer.keys.numel() + layer.values.numel()) for layer in layers])
    return Weighed(cell, metrics, adapter.spec, visual, text, by_layer[0])


def test_every_pruner_is_among_the_cells(weighed):
    names = {case.cell.part.name for case in weighed}
    assert names == {*PRUNERS.names()}
    assert len(weighed) == len({case.cell.label for case in weighed}) == len(PRUNERS.names()) + len(VARIANTS) + 1


def test_bytes_of_each_layer_are_those_in_the_cache(weighed):
    for case in weighed:
        assert case.metrics["kv_cache_bytes_by_layer"] == case.by_layer, case.cell.label
        assert case.metrics["kv_cache_bytes"] == sum(case.by_layer), case.cell.label


def test_the_plan_foresaw_them(weighed):
    for case in weighed:
        spec, pruner, total = case.spec, case.cell.pruner, case.spec.visual_tokens
        if case.cell.budget is None or pruner.adaptive:
            continue
        alive = pruner.alive(spec, pruner.schedule(spec, case.cell.budget, total), total)
        plan = pruner.plan(spec, alive, total)
        assert planned_kv_bytes_by_layer(spec, plan, case.text[0], 4) == case.by_layer, case.cell.label
        inside = [stage.layer for stage in pruner.stages(spec) if stage.inside]
        assert len(set(case.by_layer)) == 1 + len(inside), case.cell.label


def test_the_average_is_that_over_the_layers_of_the_cache(weighed):
    for case in weighed:
        assert case.metrics["average_tokens"] == pytest.approx(fmean(map(fmean, case.visual))), case.cell.label
        assert case.metrics["text_tokens"] == pytest.approx(fmean(case.text))
        assert case.metrics["kept_tokens"] == pytest.approx(fmean(layers[-1] for layers in case.visual))


def test_flops_are_those_of_the_layers_in_the_cache(weighed):
    for case in weighed:
        flops = [llm_prefill_flops(case.spec, *args) for args in zip(map(plan_of, case.visual), case.text, strict=True)]
        assert case.metrics["llm_prefill_flops"] == pytest.approx(fmean(flops), rel=1e-12), case.cell.label


def plan_of(tokens):
    """The plan of layers that have so many visual tokens, each of them a group of its own."""
    group = torch.arange(max(tokens))
    active = torch.stack([(group < number).expand(3, -1) for number in tokens])
    return OperationPlan(active, (1,) * max(tokens))


def test_merged_tokens_are_in_the_cache(weighed):
    """So that what is tested above is not without them."""
    (case,) = [case for case in weighed if case.cell.label == "sparsevlm"]
    pruner, spec = case.cell.pruner, case.spec
    selected = pruner.schedule(spec, case.cell.budget, spec.visual_tokens)
    for stage, k in zip(pruner.stages(spec), selected, strict=True):
        assert case.visual[0][stage.layer] > k


def test_an_adaptive_pruner_is_weighed_by_what_it_really_kept(weighed):
    (case,) = [case for case in weighed if case.cell.pruner and case.cell.pruner.adaptive]
    assert len(set(map(tuple, case.visual))) > 1
