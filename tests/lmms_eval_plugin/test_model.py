"""``lmms-eval --model tokenprune`` runs, and answers and scores as this package's own sweep does."""

import json
import subprocess
import sys

import pytest
import yaml

pytestmark = [pytest.mark.lmms, pytest.mark.filterwarnings("default")]
TASKS = ("pope", "gqa", "mme", "seedbench", "mmmu_val", "scienceqa")  # several images, and a row without any


def run(folder, *arguments):
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, hub):
    """Scores by task, and answers by task and row, of lmms-eval's own run."""
    folder = tmp_path_factory.mktemp("theirs")
    options = f"model=embedded,pruner=divprune,keep_tokens=24,journal={folder / 'journal.jsonl'}"
    arguments = ["--model", "tokenprune", "--model_args", options, "--tasks", ",".join(TASKS), "--batch_size", "4"]
    run(hub, "lmms_eval", *arguments, "--output_path", str(folder / "out"), "--log_samples")
    (results,) = (folder / "out").rglob("*results.json")
    journal = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    answers = {(line["task"], str(line["row"])): line["answer"] for line in journal}
    assert len(answers) == len(journal)
    return json.loads(results.read_text())["results"], answers


@pytest.fixture(scope="module")
def ours(tmp_path_factory, hub):
    """Scores by task, and answers by task and row, of a sweep."""
    folder = tmp_path_factory.mktemp("ours")
    sweep = {
        "model": "embedded",
        "task": {"name": "lmms_eval", "task": "pope", "root": str(hub)},
        "pruner": "divprune",
        "budget": {"keep_tokens": 24},
        "grid": {"task.task": list(TASKS)},
        "batch_size": 4,
        "timing_repeats": 0,
        "name": "all",
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    run(folder, "tokenprune", "sweep", "sweep.yaml")
    records = [json.loads(line) for line in (folder / "runs/all/results.jsonl").read_text().splitlines()]
    assert {record["status"] for record in records} == {"ok"}
    pruned = {record["cell"]: record for record in records if record["pruner"]["name"] == "divprune"}
    tasks = {cell: record["config"]["task"]["task"] for cell, record in pruned.items()}
    lines = [json.loads(line) for line in (folder / "runs/all/samples.jsonl").read_text().splitlines()]
    answers = {(tasks[line["cell"]], line["sample"]): line["answer"] for line in lines if line["cell"] in tasks}
    return {tasks[cell]: record["metrics"] for cell, record in pruned.items()}, answers


def test_answers_are_equal(theirs, ours):
    assert len(theirs[1]) == 24 + 12 + 16 + 8 + 6 + 6
    assert {key: text.strip() for key, text in theirs[1].items()} == ours[1]


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_equal(theirs, ours, task):
    found = {name.partition(",")[0]: value for name, value in theirs[0][task].items() if isinstance(value, float)}
    scores = {name: value for name, value in ours[0][task]["scores"].items() if name in found}
    assert scores
    assert {name: found[name] for name in scores} == pytest.approx(scores)


def made(**options):
    from tokenprune.lmms_eval_plugin.model import TokenPrune

    return TokenPrune(device="cpu", **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"keep_token": 24}, "no option 'keep_token'; did you mean 'keep_tokens'"),
        ({"pruner": "divprun", "keep_tokens": 24}, "unknown pruner 'divprun'; did you mean 'divprune'"),
        ({"pruner": "divprune"}, "'divprune' needs a budget"),
        ({"pruner": "divprune", "keep_tokens": 24, "keep_ratio": 0.5}, "keep_"),
        ({"pruner": "divprune", "keep_tokens": 2000}, "2000"),
        ({"pruner": "fastv", "pruner_args": "layer", "keep_tokens": 24}, "pruner_args is no JSON"),
        ({"pruner": "fastv", "pruner_args": {"layer": 99}, "keep_tokens": 24}, "layer"),
        ({"batch_size": "auto"}, "batch_size must be a number of questions, got 'auto'"),
        ({"dtype": "int4"}, "dtype"),
    ],
)
def test_a_mistake_is_said_before_weights_load(options, said, monkeypatch):
    from tokenprune.core.errors import TokenPruneError
    from tokenprune.engine.loading import Checkpoint

    monkeypatch.setattr(Checkpoint, "load", lambda self: pytest.fail("weights were loaded"))
    with pytest.raises(TokenPruneError, match=said):
        made(**options)


def request(text, generation, messages=None, row=0):
    from lmms_eval.api.instance import Instance

    content = messages or [{"role": "user", "content": [{"type": "text", "text": text}]}]
    arguments = (text, lambda doc: content, generation, row, "t", "test")
    return Instance(
        request_type="generate_until", arguments=arguments, idx=0, metadata={"task": "t", "doc_id": row, "repeats": 1}
    )


def test_requests():
    model = made(batch_size=2)
    model.task_dict = {"t": {"test": {row: {} for row in range(3)}}}
    greedy = {"until": ["\n\n"], "max_new_tokens": 2}
    asked = [
        request("Is there a very long question?", greedy),
        request("Is it?", greedy),
        request("Was it so?", greedy),
    ]
    assert list(model._batches([each.args for each in asked])) == [[1, 2], [0]]
    answers = model.generate_until(asked)
    assert [answer.text for answer in answers] == [model.generate_until([each])[0].text for each in asked]
    assert all(answer.token_counts.input_tokens > 0 for answer in answers)
    other = [request("Is it?", greedy | {"max_new_tokens": 1}), request("Is it?", greedy)]
    assert [len(batch) for batch in model._batches([each.args for each in other])] == [1, 1]


def test_what_cannot_be_asked():
    from tokenprune.core.errors import ConfigError

    model = made()
    model.task_dict = {"t": {"test": {0: {}}}}
    with pytest.raises(ConfigError, match="drawn at random"):
        model.generate_until([request("Is it?", {"temperature": 0.7})])
    system = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}]
    with pytest.raises(ConfigError, match="turn of 'system'; only the user may speak"):
        model.generate_until([request("Is it?", {}, system)])
    sound = [{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}]
    with pytest.raises(ConfigError, match="shows 'audio'; only images and videos"):
        model.generate_until([request("Is it?", {}, sound)])
    with pytest.raises(ConfigError, match="likelihood"):
        model.loglikelihood([])
    with pytest.raises(ConfigError, match="several rounds"):
        model.generate_until_multi_round([])


def test_stop_strings():
    from tokenprune.lmms_eval_plugin.model import _cut

    assert _cut("yes\n\nno ASSISTANT: x", ["\n\n", "ASSISTANT:"]) == "yes\n\nno "
    assert _cut("yes", "e") == "y"
