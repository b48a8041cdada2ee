"""A bench from its configuration to its table, on the embedded model and on a card's sizes."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from tokenprune.bench.config import load_bench_config
from tokenprune.bench.measure import Row, bench
from tokenprune.bench.show import remarks, show, table
from tokenprune.bench.turn import Size, Turn
from tokenprune.cli.main import app
from tokenprune.core.errors import BudgetError, ConfigError, ModelError
from tokenprune.core.plan import OperationPlan
from tokenprune.core.registry import Entry
from tokenprune.costs.flops import llm_prefill_flops
from tokenprune.costs.memory import peak_bytes
from tokenprune.costs.model_card import load_card
from tokenprune.engine.loading import config_of
from tokenprune.engine.untrained import untrained
from tokenprune.pruners.base import PRUNERS, ScorePruner

LAYERS = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 4}
SMALL = {
    "text_config": {**LAYERS, "model_type": "llama", "num_key_value_heads": 2, "vocab_size": 100},
    "vision_config": {**LAYERS, "model_type": "clip_vision_model", "image_size": 96, "patch_size": 16},
}


@pytest.fixture
def load(tmp_path):
    def load(*overrides):
        path = tmp_path / "bench.yaml"
        path.write_text("{pruner: divprune, budget: {keep_tokens: [20]}, repeats: 2, new_tokens: 2}")
        return load_bench_config(path, [f"output={tmp_path / 'out.json'}", *overrides])

    return load


def measured(config):
    return [row for rows in bench(config, Console(quiet=True)) for row in rows]


def test_rows_of_the_embedded_model(load):
    config = load("batch_sizes=[1,3]", "pruner={name: fastv, layer: 2}", "budget={average_tokens: [72]}")
    rows = measured(config)
    assert [(row.cell, row.batch_size) for row in rows] == [
        (cell, size) for size in (1, 3) for cell in ("none", "random average_tokens=72", "fastv average_tokens=72")
    ]
    for row in rows:
        assert row.error is None
        assert len(row.turns) == 2
        for turn in row.turns:
            assert min(turn.vision, turn.prefill, turn.token) > 0
            assert (turn.selection > 0) == (row.cell != "none")
            assert turn.total > turn.vision + turn.selection + turn.prefill
    none, random, fastv = (row.size for row in rows[:3])
    assert (none.tokens, random.tokens, fastv.tokens) == (144, 72, 36)
    assert random.prefill_flops < fastv.prefill_flops < none.prefill_flops
    assert random.cache_bytes == fastv.cache_bytes < none.cache_bytes
    assert random.peak_bytes < none.peak_bytes
    assert rows[3].size.cache_bytes > 2 * none.cache_bytes


def test_flops_of_a_card_are_those_of_the_plan(load, monkeypatch):
    whole = load_card("llava-1.5-7b")
    small = dataclasses.replace(whole, config=whole.config | SMALL)
    monkeypatch.setattr("tokenprune.bench.measure.load_card", lambda name: small)
    (none, *_, pruned) = measured(load("model={card: any, layers: 2, vision_layers: 2}", "text_tokens=30"))
    spec = untrained("any", config_of(small.config), layers=2, vision_layers=2).spec
    total = spec.visual_tokens
    assert total == 36
    assert none.size.prefill_flops == llm_prefill_flops(spec, OperationPlan.drop_at(spec, (), (), total), 30)
    plan = PRUNERS.get("divprune")().plan(spec, (20,), total)
    assert (pruned.size.tokens, pruned.size.prefill_flops) == (20, llm_prefill_flops(spec, plan, 30))


def test_the_file_says_all(load):
    config = load("batch_sizes=[2]")
    rows = measured(config)
    found = json.loads(Path(config.output).read_text())
    assert found["config"]["budget"] == {"keep_tokens": [20]}
    assert {"device", "processor", "cores", "threads", "versions", "commit", "parameters"} <= found.keys()
    for row, line in zip(rows, found["rows"], strict=True):
        assert line["turns"] == [dataclasses.asdict(turn) for turn in row.turns]
        assert line["seconds"]["total"]["p10"] <= line["seconds"]["total"]["median"] <= line["seconds"]["total"]["p90"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hungry(ScorePruner):
    """Takes more memory than there is if there are two images."""

    def score(self, tokens):
        if len(tokens.features) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.zeros(tokens.features.shape[:2])


def test_out_of_memory_is_a_row(load, monkeypatch):
    PRUNERS.names()
    monkeypatch.setitem(PRUNERS._entries, "hungry", Entry("hungry", Hungry, "", None))
    rows = measured(load("pruner=hungry", "batch_sizes=[1,2]"))
    assert [(row.cell, row.batch_size) for row in rows if row.error] == [("hungry keep_tokens=20", 2)]
    assert rows[-1].error == "out of memory"
    assert remarks(rows[3:]) == ["hungry keep_tokens=20 failed at batch size 2: out of memory"]


@pytest.mark.parametrize("name", ["llava-next-video-7b", "gemma-3-4b", "paligemma-3b"])
def test_a_card_that_is_cut(name):
    whole = load_card(name).spec
    cut = untrained(name, config_of(load_card(name).config), layers=2, vision_layers=2)
    assert (cut.spec.llm.layers, cut.spec.vision.layers) == (2, min(2, whole.vision.layers))
    assert dataclasses.replace(cut.spec.llm, layers=1) == dataclasses.replace(whole.llm, layers=1) or "gemma" in name
    assert cut.spec.visual_tokens == whole.visual_tokens
    assert len(getattr(cut.config.text_config, "layer_types", None) or range(2)) == 2


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        ("model={card: llava-1.5}", ConfigError, "no model card 'llava-1.5'; did you mean"),
        ("model={card: llava-1.5-7b, layers: 40}", ConfigError, "llava-1.5-7b: layers must be from 1 to 32, got 40"),
        (
            "model={card: llava-1.5-7b, vision_layers: 0}",
            ConfigError,
            "llava-1.5-7b: vision_layers must be from 1 to 24, got 0",
        ),
        ("model={card: llava-1.5-7b, layer: 2}", ConfigError, "no option 'layer'; did you mean 'layers'"),
        ("model={card: llava-1.5-7b, scope: tile}", ModelError, "tile"),
        ("batch_sizes=[0]", ConfigError, "batch_sizes must be integers of at least 1"),
        ("batch_sizes=[9999]", ConfigError, "has .* questions, too few for a batch of 9999"),
        ("repeats=0", ConfigError, "repeats must be at least 1"),
        ("new_tokens=1", ConfigError, "new_tokens must be at least 2"),
        ("budget.keep_tokens=[200]", BudgetError, "200"),
        ("pruner=divprun", Exception, "did you mean 'divprune'"),
        ("output=/proc/x/bench.json", ConfigError, "output '/proc/x/bench.json' cannot be written"),
    ],
)
def test_mistakes_before_anything_is_loaded(load, monkeypatch, override, error, words):
    monkeypatch.setattr("tokenprune.engine.loading.Checkpoint.load", lambda self: pytest.fail("loaded"))
    monkeypatch.setattr("tokenprune.engine.untrained.Untrained.load", lambda self: pytest.fail("loaded"))
    with pytest.raises(error, match=words):
        measured(load(override))


def row(cell, seconds, *, selection=0.0, flops=100):
    turns = tuple(Turn(0.1, selection, s - 0.2 - selection, 0.05, s) for s in seconds)
    return Row(cell, {}, "none", 1, size=Size(10.0, flops, 1000, 2000), turns=turns)


def test_ratios_are_of_turns_side_by_side():
    none, pruned = row("none", [1.0, 2.0, 4.0, 8.0]), row("a", [0.5, 1.0, 2.0, 8.8], selection=0.1, flops=40)
    assert pruned.over(none, lambda turn: turn.total) == 0.5
    assert pruned.spread(lambda turn: turn.total) == {"median": 1.5, "p10": 0.65, "p90": pytest.approx(6.76)}
    console = Console(width=200, record=True, quiet=True)
    console.print(table([none, pruned]))
    assert table([none, pruned]).columns[7]._cells == ["1.000", "0.400"]
    assert remarks([none, pruned]) == []


def test_no_number_is_cut_in_a_narrow_terminal(capsys):
    slow = row("cdpruner conditioning=prompt_embedding", [123.4], flops=40)
    show([slow, slow], Console(width=40))
    said = capsys.readouterr().out
    assert "…" not in said
    assert "123400-123400" in said
    assert "2kB" in said


def test_slower_is_said_plainly():
    said = remarks([row("none", [1.0]), row("a", [1.3], selection=0.4)])
    assert said == [
        "a is slower than no pruning at batch size 1: 1.30 times the time. Selection takes 400 ms, and prefill is 100 "
        "ms shorter."
    ]


def test_peak_is_what_lives_at_a_time():
    def work():
        for _ in range(3):
            kept = torch.zeros(1000, 250)
            del kept

    assert 1e6 <= peak_bytes(work, torch.device("cpu")) < 1.1e6


def test_the_command(load, tmp_path):
    load()
    path, output = str(tmp_path / "bench.yaml"), tmp_path / "o.json"
    result = CliRunner().invoke(app, ["bench", path, f"output={output}", "repeats=1"])
    assert result.exit_code == 0, result.output
    assert "batch size 1" in result.output
    assert f"results: {output}" in result.output.replace("\n", "")
