"""Users' mistakes through the command line: one sentence, exit status 2, no traceback, nothing computed."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tokenprune.cli.main import app
from tokenprune.sweeps import evaluate
from tokenprune.tasks import images
from tokenprune.testing.checkpoints import save_llava

QUICKSTART = str(Path(__file__).parents[2] / "configs/quickstart.yaml")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(save_llava(tmp_path_factory.mktemp("llava")))


@pytest.fixture
def call(tmp_path):
    def call(*arguments, output=tmp_path / "runs"):
        return CliRunner().invoke(app, ["run", QUICKSTART, f"output={output}", *map(str, arguments)])

    return call


@pytest.fixture
def refused(call, monkeypatch):
    """Calls, and checks that all that happens is one sentence with some words."""

    def refused(words, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(evaluate.Evaluator, "ask", lambda *args: pytest.fail("something was computed"))
            result = call(*arguments, **options)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("tokenprune: ")
        assert result.stderr.count("\n") == 1
        assert "Traceback" not in result.output
        assert result.stdout == ""
        for word in [words] if isinstance(words, str) else words:
            assert word in result.stderr
        return result

    return refused


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("pruner.name=cdprunr", "unknown pruner 'cdprunr'; did you mean 'cdpruner'?"),
        ("pruner.kernl=rbf", "pruner 'cdpruner' has no option 'kernl'; did you mean 'kernel'?"),
        ("pruner.kernel=gauss", ["gauss", "rbf", "cosine"]),
        ("prunr.kernel=rbf", "config has no option 'prunr'; did you mean 'pruner'?"),
        ("budget.keep_tokens=0", "keep_tokens must be an integer of at least 1, got 0"),
        ("budget.keep_tokens=-5", "keep_tokens must be an integer of at least 1, got -5"),
        ("budget.keep_tokens=145", "keep_tokens=145 exceeds the 144 visual tokens"),
        ("budget.keep_ratio=0", "keep_ratio must be a number in (0, 1], got 0"),
        ("budget.keep_ratio=1.01", "keep_ratio must be a number in (0, 1], got 1.01"),
        (
            ["budget.keep_ratio=0.5", "budget.keep_tokens=3"],
            "give exactly one of keep_tokens, keep_ratio, average_tokens and flops, got keep_tokens and",
        ),
        ("budget.average_tokens=0", "average_tokens must be a number of at least 1, got 0"),
        ("budget.flops=1e3", "pruner 'random': flops=1000 cannot be met: with one visual token kept"),
        ("budget.flops=1e12", "pruner 'random': flops=1000000000000 exceeds the 6"),
        (["budget.flops=1e8", "budget.text_tokens=-1"], "text_tokens must be an integer of at least 0, got -1"),
        (["budget.keep_tokens=8", "budget.text_tokens=9"], "text_tokens goes with flops, but the budget is of"),
        ("budget.average_tokens=145", "pruner 'random': average_tokens=145 exceeds the 144"),
        (
            ["baselines=[]", "pruner={name: fastv, layer: 2}", "budget.average_tokens=40"],
            "pruner 'fastv': average_tokens=40 cannot be met: with nothing kept, the layers before the pruning stages",
        ),
        ("pruner={name: fastv, layer: 99}", "pruner 'fastv layer=99': FastV prunes at layer=99, but the LLM has 6"),
        ("pruner=[cdpruner, fastw]", "unknown pruner 'fastw'; did you mean 'fastv'?"),
        ("pruner=[cdpruner, {name: fastv, layr: 2}]", "pruner 'fastv' has no option 'layr'; did you mean 'layer'?"),
        ("pruner=[cdpruner, {name: fastv, layer: x}]", "pruner 'fastv': layer must be an integer"),
        ("pruner=[cdpruner, {layer: 2}]", "pruner[1] needs a name, got None"),
        ("pruner=[]", "option 'pruners' is empty; give at least one pruner"),
        (
            "pruner=[cdpruner, divprune]",
            "'cdpruner+divprune': the composition of CDPruner and DivPrune prunes at pre_llm",
        ),
        (
            "pruner=[fastv, cdpruner]",
            "prunes at layer=2 and then at pre_llm; each stage must come after the one before",
        ),
        ("pruner=[cdpruner, {name: fastv, keep_ratio: 0.5}]", "CDPruner has none"),
        ("baselines=[[cdpruner, [fastv]]]", "a composition cannot be a part of another"),
        ("model.dtype=float8_e4m3fn", "float32"),
        ("model.dtype=int8", "float32"),
        ("model={dtype: float64, attention: eager}", "eager attention gives NaN for padded prompts in float64"),
        ("model.device=cuda:99", "cuda:99"),
        ("model={name: lava, path: x}", ["unknown model 'lava'", "llava", "docs/add_an_adapter"]),
        ("model={name: llava, path: ''}", "'llava' needs a path: a hub id or the folder of a checkpoint"),
        ("model={name: embedded, path: ''}", "'embedded' takes no path"),
        ("model={name: llava, path: /no/such/folder}", "model '/no/such/folder' cannot be loaded"),
        ("task.name=scene", "unknown task 'scene'; did you mean 'scenes'?"),
        ("tracking.name=wanbd", "unknown tracker 'wanbd'; did you mean 'wandb'?"),
        ("nonsense", "override 'nonsense' is not of the form key=value"),
    ],
)
def test_configuration(refused, tmp_path, override, words):
    refused(words, *([override] if isinstance(override, str) else override))
    assert not (tmp_path / "runs").exists()


def test_config_files(tmp_path):
    for name, content in {"missing.yaml": None, "bad.yaml": "a: [1", "list.yaml": "- 1"}.items():
        if content:
            (tmp_path / name).write_text(content)
        result = CliRunner().invoke(app, ["run", str(tmp_path / name)])
        assert result.exit_code == 2
        assert name in result.stderr
        assert result.stderr.count("\n") == 1


def test_unknown_names_elsewhere():
    for arguments, words in {
        ("list", "pruner"): "did you mean 'pruners'?",
        ("show", "cdp"): "nothing is named 'cdp'",
    }.items():
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
        assert words in result.stderr
        assert result.stderr.count("\n") == 1


def test_report_without_a_run(tmp_path):
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 2
    assert "results.jsonl holds no records; run the experiment first" in result.stderr


def test_a_model_that_no_adapter_knows(refused, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    refused(["'bert'", "llava", "docs/add_an_adapter"], f"model={{name: llava, path: {tmp_path}}}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "quite_new"}))
    refused("cannot be loaded", f"model={{name: llava, path: {tmp_path}}}")


def noise(size=(60, 60)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8))


def folder_task(folder, *names):
    """A configuration of one's own for a folder's images; the quickstart's task has other options."""
    rows = [{"image": name, "question": "What color is the star?", "answer": "red"} for name in names]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "task": {"name": "folder", "path": f"{folder}/questions.jsonl"},
        "pruner": "uniform",
        "budget": {"keep_tokens": 4},
        "timing_repeats": 0,
        "output": f"{folder}/runs",
    }
    (folder / "c.yaml").write_text(json.dumps(config))
    return ["run", str(folder / "c.yaml")]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"just text", "no image format"),
        ("half", "damaged"),
    ],
    ids=["missing", "empty", "text", "truncated"],
)
def test_images(tmp_path, content, words):
    path = tmp_path / "a.png"
    if content == "half":
        noise().save(path)
        content = path.read_bytes()[:3000]
    if content is not None:
        path.write_bytes(content)
    result = CliRunner().invoke(app, folder_task(tmp_path, "a.png"))
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert str(path) in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_huge_image(tmp_path, monkeypatch):
    noise().save(tmp_path / "a.png")
    monkeypatch.setattr(images, "MAX_PIXELS", 3599)
    result = CliRunner().invoke(app, folder_task(tmp_path, "a.png"))
    assert result.exit_code == 2
    assert "60 x 60 pixels" in result.stderr


def test_unusual_images_are_answered(tmp_path, checkpoint):
    """One pixel, CMYK, sixteen bits, alpha, grey: the model sees RGB."""
    noise((1, 1)).save(tmp_path / "one.png")
    noise().convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.arange(3600, dtype=np.uint16).reshape(60, 60) * 18).save(tmp_path / "deep.png")
    noise().convert("RGBA").save(tmp_path / "alpha.png")
    noise().convert("L").save(tmp_path / "grey.png")
    noise((20, 90)).save(tmp_path / "wide.webp")
    names = ["one.png", "cmyk.jpg", "deep.png", "alpha.png", "grey.png", "wide.webp"]
    result = CliRunner().invoke(app, [*folder_task(tmp_path, *names), f"model={{name: llava, path: {checkpoint}}}"])
    assert result.exit_code == 0, result.output
    (folder,) = (tmp_path / "runs").iterdir()
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 3 * len(names)


def test_results_folder_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").write_text("")
    refused("results folder", output=tmp_path / "file")
    refused("results folder", output="/proc/runs")


def test_half_written_last_line(call, checkpoint, tmp_path):
    small = (
        *(f"model={{name: llava, path: {checkpoint}}}", "task.num_samples=3", "budget.average_tokens=5"),
        *("baselines=[]", "timing_repeats=0"),
    )
    assert call(*small).exit_code == 0
    (path,) = (tmp_path / "runs").glob("*/results.jsonl")
    whole = path.read_text()
    path.write_text(whole[:-30])
    result = call(*small)
    assert result.exit_code == 0
    assert "half-written" in result.stderr
    assert len(path.read_text().splitlines()) == len(whole.splitlines())


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("conditioning: oracle", "conditioning oracle needs a task that says where in the image the evidence is"),
        (
            "conditioning: {name: clip_text, question: other}",
            "relevance to another question needs a task whose samples come with another question",
        ),
    ],
)
def test_controls_need_a_task_that_has_them(tmp_path, monkeypatch, option, words):
    monkeypatch.setattr(evaluate.Evaluator, "ask", lambda *args: pytest.fail("something was computed"))
    Image.new("RGB", (96, 96)).save(tmp_path / "a.png")
    result = CliRunner().invoke(app, [*folder_task(tmp_path, "a.png"), f"pruner={{name: cdpruner, {option}}}"])
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"tokenprune: {words}")
    assert result.stderr.count("\n") == 1
