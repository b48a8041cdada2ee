"""The table of FLOPs: its lines are the metrics, and its columns the cases."""

import io

import pytest
from rich.console import Console

from tokenprune.bench.flops_table import console_table, lines, pruned_case, unpruned_case
from tokenprune.core.budget import Budget
from tokenprune.core.errors import ConfigError
from tokenprune.costs import flops
from tokenprune.costs.conventions import CONVENTIONS
from tokenprune.costs.memory import planned_kv_bytes_by_layer
from tokenprune.costs.model_card import load_card
from tokenprune.pruners.base import create_pruner
from tokenprune.testing.pruners import Early

SPEC = load_card("llava-1.5-7b").spec
TEXT = 40


@pytest.fixture(scope="module")
def cases():
    budgets = Budget(average_tokens=64), Budget(average_tokens=192)
    pruner = create_pruner("fastv", layer=2)
    return [unpruned_case(SPEC), *(pruned_case(SPEC, pruner, budget, TEXT) for budget in budgets)]


def test_lines_are_the_metrics(cases):
    rows = {row.name: row.values for row in lines(SPEC, cases, TEXT)}
    for place, case in enumerate(cases):
        for name, convention in CONVENTIONS.items():
            assert rows[name][place] == convention.prefill(SPEC, case.plan, TEXT)
        around = flops.vision_flops(SPEC) + flops.projector_flops(SPEC) + flops.lm_head_flops(SPEC)
        assert rows["whole prefill"][place] == rows["exact"][place] + around + case.selection
        step = flops.llm_decode_flops(SPEC, case.plan, TEXT) + flops.lm_head_flops(SPEC)
        assert rows["decoding"][place] == step
        assert rows["KV cache"][place] == sum(planned_kv_bytes_by_layer(SPEC, case.plan, TEXT, 2))
        assert rows["average tokens"][place] == case.plan.mean_tokens
    assert rows["kept tokens"] == (576, 30, 167)
    assert rows["selection"][0] == 0 < rows["selection"][1]


def test_conventions_come_first_and_each_part_ends_once(cases):
    rows = lines(SPEC, cases, TEXT)
    assert [row.name for row in rows[:5]] == list(CONVENTIONS)
    assert [row.name for row in rows if row.last] == ["fastv", "whole prefill"]


def test_printed(cases):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(console_table("a [title]", "a [note]", lines(SPEC, cases, TEXT), cases))
    text = console.export_text()
    assert "a [title]" in text
    assert "a [note]" in text
    assert text.count("share %") == 2
    (row,) = (line.split() for line in text.splitlines() if line.split()[:1] == ["exact"])
    whole, *parts = (flops.llm_prefill_flops(SPEC, case.plan, TEXT) for case in cases)
    assert [row[-5], row[-3], row[-1]] == ["8.18T", *(f"{100 * part / whole:.1f}" for part in parts)]


def test_stages_inside_the_tower():
    """Its later layers and the projector cost less, where its patches are the visual tokens."""
    spec, budget = load_card("llava-1.5-7b").spec, Budget(keep_tokens=64)
    plain, pruned = unpruned_case(spec), pruned_case(spec, Early(layers=(4, 12)), budget, 40)
    parts = {line.name: line.values for line in lines(spec, [plain, pruned], 40)}
    layers = [577] * 4 + [193] * 8 + [65] * 12  # 576, 192 and 64 patches, and CLS
    saved = sum(spec.vision.layer_flops(577, 577, 577) - spec.vision.layer_flops(n, n, n) for n in layers)
    assert parts["vision tower"][0] - parts["vision tower"][1] == saved
    assert parts["projector"][1] * 9 == parts["projector"][0]
    for name in ("llava-next-7b", "qwen2.5-vl-7b", "gemma-3-4b"):
        with pytest.raises(ConfigError, match=r"tower\(4\): patches can leave .* where each is a visual token of one"):
            pruned_case(load_card(name).spec, Early(layers=(4,)), budget, 40)
    with pytest.raises(ConfigError, match=r"tower\(24\): the vision tower has 24 layers; allowed: 0 to 23"):
        pruned_case(spec, Early(layers=(24,)), budget, 40)


def test_content_decides():
    with pytest.raises(ConfigError, match="depends on the image"):
        pruned_case(SPEC, create_pruner("sparsevlm", count="rank"), Budget(keep_ratio=1.0), TEXT)
