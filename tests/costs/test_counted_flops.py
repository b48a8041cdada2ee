"""Published models at full size: the benchmark counts what ``exact`` says, and the docs print its table."""

import json
from pathlib import Path

import counted_flops
import pytest

from tokenprune.costs.model_card import card_names, load_card
from tokenprune.engine.loading import config_of

ROOT = Path(__file__).parents[2]
ROWS = {row["card"]: row for row in json.loads(counted_flops.FILE.read_text())["rows"]}
QUICK = ("llava-1.5-7b",)
MORE = ("qwen3-vl-8b", "paligemma2-3b")


def check(name):
    row = counted_flops.count(load_card(name))
    assert row["counted"] == row["exact"]
    assert row["counted_pruned"] == row["exact_pruned"]
    assert row == ROWS[name]


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.full) for name in MORE)])
def test_counted(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*card_names()} - {*QUICK, *MORE}))
def test_all_are_counted(name):
    check(name)


@pytest.mark.parametrize("name", card_names())
def test_the_kept_results_are_of_these_cards(name):
    """Counted once, and equal to what is said now."""
    row, card = ROWS[name], load_card(name)
    assert row["counted"] == row["exact"]
    assert row["counted_pruned"] == row["exact_pruned"]
    said = counted_flops.expected(card.spec, row["text"])
    assert {part: row[part] for part in said} == said
    assert row["billions"] == pytest.approx(card.billions, abs=0.0051)


def test_the_docs_print_the_table():
    assert set(ROWS) == set(card_names())
    assert counted_flops.table(ROWS.values()) in (ROOT / "docs/reproducing.md").read_text()


def test_another_model_is_counted_otherwise():
    """What the closed form does not know of is seen: one layer less, and a head that pools the patches."""
    card = load_card("paligemma-3b")
    config, said = config_of(card.config), ROWS["paligemma-3b"]["counted"]
    config.vision_config.vision_use_head, config.text_config.num_hidden_layers = True, 17
    model, _ = counted_flops.without_weights(config)
    found = counted_flops.whole(model, counted_flops.adapter_of(model).nominal_inputs(counted_flops.TEXT))
    assert found["tower"] > said["tower"]
    assert found["layers"] == said["layers"] * 17 // 18
