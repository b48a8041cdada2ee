"""``tokenprune flops``: what is asked for, and what is refused in one sentence."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokenprune.bench.flops_request import request
from tokenprune.bench.flops_table import lines
from tokenprune.cli.main import app
from tokenprune.core.budget import Budget
from tokenprune.costs.conventions import CONVENTIONS
from tokenprune.costs.flops import llm_prefill_flops, vision_flops
from tokenprune.costs.model_card import card_names, load_card
from tokenprune.pruners.base import PRUNERS, create_pruner
from tokenprune.testing.checkpoints import save_llava


def call(*arguments):
    return CliRunner().invoke(app, ["flops", *map(str, arguments)], env={"COLUMNS": "200"})


def cells(result, name):
    (row,) = (line for line in result.stdout.splitlines() if line.startswith(f" {name} "))
    return row.split()


def test_the_headline():
    result = call("--model", "llava-next-7b", "--pruner", "cdpruner", "--keep-tokens", 320)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("llava-next-7b, cdpruner, 40 text tokens")
    assert "keep_tokens=320" in result.stdout
    assert cells(result, "cdpruner")[-3:] == ["41.7T", "4.2T", "10.1"]
    assert cells(result, "gsop")[-3:] == cells(result, "exact")[-3:] == ["42.3T", "4.73T", "11.2"]
    assert cells(result, "kept tokens")[-3:] == ["2880", "320", "11.1"]
    assert load_card("llava-next-7b").note[:20] in result.stdout


@pytest.mark.parametrize("card", card_names())
def test_unpruned_alone(card):
    result = call("--model", card)
    assert result.exit_code == 0, result.output
    assert "share" not in result.stdout


@pytest.mark.parametrize("card", card_names())
def test_every_card(card):
    spec = load_card(card).spec
    asked = request(card, None, ["pruner=fastv", "budget.keep_tokens=64"], 40)
    assert asked.cases[1].kept == 64
    values = {row.name: row.values for row in lines(asked.spec, asked.cases, 40)}
    parts = ("exact", "vision tower", "projector", "LM head")
    assert values["whole prefill"][0] == sum(values[name][0] for name in parts)
    for name in (*CONVENTIONS, "decoding", "KV cache"):
        whole, less = values[name]
        assert 0 < less < whole
    assert values["vision tower"][1] == vision_flops(spec) > 0


@pytest.mark.parametrize("name", sorted({*PRUNERS.names()} - {"none"}))
def test_every_pruner(name):
    asked = request("llava-1.5-7b", None, [f"pruner={name}", "budget.average_tokens=192"], 40)
    assert [case.name for case in asked.cases] == ["unpruned", "average_tokens=192"]
    assert asked.cases[1].plan.mean_tokens == pytest.approx(192, abs=3)


def test_several_budgets_and_options():
    result = call("--model", "llava-1.5-7b", "--pruner", "fastv", "pruner.layer=3", "budget.average_tokens=[192,128]")
    assert result.exit_code == 0, result.output
    assert "fastv layer=3" in result.stdout
    spec, pruner = load_card("llava-1.5-7b").spec, create_pruner("fastv", layer=3)
    expected = [pruner.schedule(spec, Budget(average_tokens=n), 576) for n in (192, 128)]
    kept = cells(result, "kept tokens")
    assert [(int(kept[-4]),), (int(kept[-2]),)] == expected


def test_flops_are_for_the_text_of_the_table():
    spec = load_card("llava-next-7b").spec
    options = ["pruner={name: dop, base: uniform, attention_depth: 24, mlp_depth: 16}", "budget.flops=6e12"]
    asked = request("llava-next-7b", None, options, 135)
    spent = llm_prefill_flops(spec, asked.cases[1].plan, 135)
    assert 5.98e12 < spent <= 6e12
    assert asked.cases[1].name == "flops=6000000000000, text_tokens=135"


def test_an_option_that_fixes_the_budget():
    asked = request("llava-1.5-7b", None, ["pruner={name: sparsevlm, preset: 192}"], 40)
    assert asked.cases[1].plan.mean_tokens == pytest.approx(206, abs=0.5)  # its published 192 are 206


@pytest.mark.parametrize(
    "pruner",
    [
        "{name: divprune, features: 'timm:vit_base_patch16_224'}",
        "{name: cdpruner, features: 'timm:vit_base_patch16_224'}",
        "{name: dop, base: {name: divprune, features: 'timm:vit_base_patch16_224'}, attention_depth: 16}",
        "{name: compose, pruners: [{name: divprune, features: 'timm:vit_base_patch16_224'}, fastv]}",
    ],
)
def test_features_of_another_encoder_are_a_part_of_the_selection(pruner):
    asked = request("llava-1.5-7b", None, [f"pruner={pruner}", "budget.keep_tokens=64"], 40)
    tokens, width = 197, 768
    layer = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    encoder = 12 * layer + 2 * 196 * 768 * width
    assert encoder < asked.cases[1].selection < 1.03 * encoder
    own = request("llava-1.5-7b", None, ["pruner=divprune", "budget.keep_tokens=64"], 40)
    assert own.cases[1].selection < encoder / 10


def test_any_config(tmp_path):
    folder = save_llava(tmp_path)
    for place in (folder, Path(folder) / "config.json"):
        result = call("--config", place, "--pruner", "divprune", "--keep-tokens", 5)
        assert result.exit_code == 0, result.output
        assert cells(result, "kept tokens")[-3:] == ["25", "5", "20.0"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give one of --model and --config; models: gemma-3-12b, gemma-3-27b"),
        (["--model", "llava-1.5-7b", "--config", "x"], "give one of --model and --config"),
        (["--model", "llava-1.5-8b"], "did you mean 'llava-1.5-7b'?"),
        (["--config", "/no/such/config.json"], "config '/no/such/config.json' does not exist"),
        (["--config", "/no/such/folder"], "model '/no/such/folder' cannot be loaded"),
        (["--pruner", "cdprunr", "--keep-tokens", "3"], "unknown pruner 'cdprunr'; did you mean 'cdpruner'?"),
        (["--pruner", "cdpruner"], "pruner 'cdpruner': give a budget: --keep-tokens"),
        (["--keep-tokens", "3"], "a budget needs a pruner; give --pruner"),
        (["pruner.layer=3"], "pruner needs a name, got None"),
        (["--pruner", "fastv", "pruner.layr=3", "--keep-tokens", "3"], "did you mean 'layer'?"),
        (["--pruner", "fastv", "pruner.layer=99", "--keep-tokens", "3"], "but the LLM has 32 layers"),
        (["--pruner", "fastv", "budget.average_tokens=20"], "pruner 'fastv': average_tokens=20 cannot be met"),
        (["--pruner", "uniform", "--keep-tokens", "600"], "keep_tokens=600 exceeds the 576 visual tokens"),
        (["--pruner", "uniform", "--keep-tokens", "3", "budget.flops=1e12"], "got keep_tokens and flops"),
        (["--pruner", "uniform", "budget.flops=1e9"], "the decoder layers cost"),
        (["--pruner", "uniform", "budget.flops=1e14"], "that all 576 visual tokens cost"),
        (["--pruner", "sparsevlm", "pruner.count=rank"], "depends on the image"),
        (["--pruner", "sparsevlm", "pruner.preset=64", "--keep-tokens", "3"], "its options fix its budget"),
        (
            ["--pruner", "divprune", "pruner.features=timm:vit_bse_patch16_224", "--keep-tokens", "3"],
            "pruner 'divprune': unknown timm model 'vit_bse_patch16_224' in features; near names: vit_base_patch16_224",
        ),
        (["modl.x=3"], "flops knows no 'modl'; Allowed: budget, pruner"),
        (["nonsense"], "override 'nonsense' is not of the form key=value"),
        (["--text-tokens", "0"], "text_tokens must be at least 1, got 0"),
    ],
)
def test_mistakes(arguments, words):
    named = not arguments or {"--model", "--config"} & {*arguments}
    result = call(*([] if named else ["--model", "llava-1.5-7b"]), *arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert result.stderr.startswith("tokenprune: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
