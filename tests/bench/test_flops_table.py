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


def test_content_decides():
    with pytest.raises(ConfigError, match="depends on the image"):
        pruned_case(SPEC, create_pruner("sparsevlm", count="rank"), Budget(keep_ratio=1.0), TEXT)
