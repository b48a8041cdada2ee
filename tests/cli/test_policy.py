"""``fit-policy``, ``run`` with what it wrote, and ``show-policy``, on the command line."""

from pathlib import Path

import pytest
import yaml
from matplotlib.image import imread
from typer.testing import CliRunner

from tokenprune.cli.main import app
from tokenprune.policies import measurements
from tokenprune.policies.divergence import Batch
from tokenprune.pruners.dop import policy_file
from tokenprune.testing.checkpoints import save_llava

ROOT = Path(__file__).parents[2]
FIT, QUICKSTART = str(ROOT / "configs/fit_policy.yaml"), str(ROOT / "configs/quickstart.yaml")


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "300"})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(save_llava(tmp_path_factory.mktemp("llava"), clip=False))


@pytest.fixture(scope="module")
def options(checkpoint):
    return (f"model={{name: llava, path: {checkpoint}}}", "pruner={name: divprune}", "samples=3", "points=3")


@pytest.fixture(scope="module")
def fitted(options, tmp_path_factory):
    """What the command printed, its arguments, and the files, the larger budget first."""
    output = tmp_path_factory.mktemp("fits")
    arguments = ("fit-policy", FIT, *options, "budget.average_tokens=[12,6]", f"output={output}")
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result, arguments, [next(output.glob(f"*/average_tokens_{budget}.yaml")) for budget in (12, 6)]


def test_fit(fitted):
    result, _, paths = fitted
    for path in paths:
        policy = policy_file.load(path)
        assert f"policy: {path}" in result.stdout
        assert policy.origin.model == "llava"
        assert policy.budget.value in (12, 6)
    assert result.stdout.count("chosen") == 2
    assert "llava, divprune, at most 12 average_tokens" in result.stdout
    assert "9 runs for the curves took " in result.stdout
    assert "% of the time of as many full prefills" in result.stdout
    assert "measuring curves" in result.stderr
    assert "measuring the best jointly" in result.stderr


def test_again_says_the_same(fitted, monkeypatch):
    first, arguments, paths = fitted
    before = [path.read_bytes() for path in paths]
    monkeypatch.setattr(Batch, "__init__", lambda *args: pytest.fail("measured again"))
    again = call(*arguments)
    assert again.exit_code == 0, again.output
    assert again.stdout == first.stdout
    assert [path.read_bytes() for path in paths] == before


def test_interrupted(options, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(measurements, "measure", interrupt)
    result = call("fit-policy", FIT, *options, f"output={tmp_path}", "budget.average_tokens=12")
    assert result.exit_code == 130
    assert "interrupted; what is finished is kept, and the same command goes on from there" in result.stderr
    assert "Traceback" not in result.output


def test_run_uses_a_policy_and_skips_what_is_finished(fitted, options, tmp_path):
    path = fitted[2][1]
    arguments = (
        *("run", QUICKSTART, "pruner.name=dop", f"pruner.policy={path}", options[0], "task.num_samples=3"),
        *("baselines=[]", "budget.keep_tokens=9", "timing_repeats=0", "max_new_tokens=2", f"output={tmp_path}"),
    )
    first = call(*arguments)
    assert first.exit_code == 0, first.output
    (folder,) = tmp_path.iterdir()
    written, depths = yaml.safe_load((folder / "config.yaml").read_text())["pruner"], policy_file.load(path).depths
    assert written["base"]["name"] == "divprune"
    assert written["policy"] == str(path)
    assert (written["attention_depth"], written["mlp_depth"]) == (depths.attention, depths.mlp)
    assert written["keep_tokens"] == depths.keep
    assert len(list(folder.glob("kept_dop*.png"))) == 1
    before = (folder / "results.jsonl").read_bytes()
    for again in (call(*arguments), call("run", folder / "config.yaml")):
        assert again.exit_code == 0, again.output
        assert again.stdout == first.stdout
        assert (folder / "results.jsonl").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("out", [None, "drawn.png", "drawn"])
def test_show(fitted, tmp_path, out):
    path = tmp_path / "policy.yaml"
    path.write_bytes(fitted[2][0].read_bytes())
    result = call("show-policy", path, *(["--out", tmp_path / out] if out else []))
    assert result.exit_code == 0, result.output
    picture = tmp_path / (out or "policy.png")
    assert f"picture: {picture}" in result.stdout
    depths = policy_file.load(path).depths
    (row,) = [line.split() for line in result.stdout.splitlines() if line.lstrip().startswith("chosen")]
    assert row[1:5] == [str(n) for n in (depths.attention, depths.receivers, depths.mlp, depths.keep)]
    assert "layers and 25 visual tokens; KL in nats, forward, first_token, 3 samples" in " ".join(result.stdout.split())
    pixels = imread(picture, format="png")
    assert min(pixels.shape[:2]) > 400
    assert pixels.std() > 0.05


def refused(result, *words):
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("tokenprune: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("samples=0", "samples must be at least 1"),
        ("pruner.name=divprun", "did you mean 'divprune'?"),
        ("pruner={name: fastv, layer: 2}", "selects before the LLM alone"),
        ("budget.average_tokens=0.1", "no policy within the curves costs 0.1 average_tokens or less; the least is"),
        ("budget.average_tokens=[]", "average_tokens must be positive numbers, got []"),
        ("model.path=/no/such/folder", "model '/no/such/folder' cannot be loaded"),
        ("output=/proc/fits", "cannot be written"),
    ],
)
def test_mistakes_of_a_fit(options, tmp_path, monkeypatch, override, words):
    def refuse(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("tokenprune.engine.loading.AutoModelForImageTextToText.from_pretrained", refuse)
    result = call("fit-policy", FIT, *options, "budget.average_tokens=[12,6]", f"output={tmp_path}/fits", override)
    refused(result, words)
    assert not (tmp_path / "fits").exists()


def test_mistakes_of_show_and_run(fitted, tmp_path):
    path, broken = fitted[2][0], tmp_path / "broken.yaml"
    broken.write_text("format: 1\n")
    refused(call("show-policy", tmp_path / "none.yaml"), "none.yaml", "cannot be read")
    refused(call("show-policy", broken), "needs the option 'origin'")
    result = call("show-policy", path, "--out", tmp_path / "no/such/folder.png")
    assert result.exit_code == 2
    assert result.stderr == (
        f"tokenprune: picture '{tmp_path}/no/such/folder.png' cannot be written: No such file or directory\n"
    )
    run = ("run", QUICKSTART, "pruner.name=dop", f"output={tmp_path}/runs")
    refused(call(*run, f"pruner={{name: dop, policy: {broken}}}"), "pruner 'dop': policy ", "needs the option 'origin'")
    refused(call(*run, f"pruner={{name: dop, policy: {path}, mlp_depth: 4}}"), "'mlp_depth' is 4, but policy")
    assert not (tmp_path / "runs").exists()


def test_list_of_commands():
    text = call("--help").stdout
    assert "fit-policy" in text
    assert "show-policy" in text
