"""Prompts and scores are lmms-eval's own, on each task and sheet of answers."""

import json
import re
from pathlib import Path
from statistics import fmean

import pytest

from tokenprune.tasks.benchmarks import BENCHMARKS
from tokenprune.tasks.lmms_eval import LmmsEval

pytestmark = [pytest.mark.lmms, pytest.mark.filterwarnings("default")]
GOLDEN = json.loads((Path(__file__).parents[2] / "fixtures/lmms/golden.json").read_text())["tasks"]
MEANS = ("gqa", "scienceqa", "textvqa_val", "vqav2_val", "ai2d", "docvqa_val", "mvbench_action_antonym", "videomme")
SHEETS = ("truth", "mixed", "shifted")


@pytest.fixture(scope="module", params=GOLDEN)
def asked(request, hub):
    """A task with its rows, and what is known of it."""
    task = LmmsEval(task=request.param, root=str(hub))
    return task, task.samples(), GOLDEN[request.param]


def test_prompts(asked):
    _, samples, golden = asked
    prompts = [" ".join(sample.turn.text.split()) for sample in samples]
    # MMMU's images stand where the text names them, so their names are no text.
    expected = [" ".join(re.sub(r"<image \d>", "", text).split()) for text in golden["prompts"]]
    assert prompts == expected
    assert [len(sample.turn.shape) for sample in samples] == golden["images"]
    assert [sample.row for sample in samples] == list(range(len(samples)))


def test_opened_pictures_have_the_sizes_that_were_said(asked):
    for sample in asked[1]:
        opened = [part.size for part in sample.turn.parts() if hasattr(part, "convert")]
        assert opened == [size for kind, size in sample.turn.shape if kind == "image"]


@pytest.mark.parametrize("sheet", SHEETS)
def test_metrics(asked, sheet):
    task, samples, golden = asked
    rows = golden["sheets"][sheet]["rows"]
    answers = [(sample, row["answer"]) for sample, row in zip(samples, rows, strict=True)]
    expected = golden["sheets"][sheet]["aggregated"]
    found = task.metrics(answers)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert task.metrics(answers) == found  # nothing adds up from one call to the next


@pytest.mark.parametrize("sheet", SHEETS)
def test_scores_of_single_rows(asked, sheet):
    task, samples, golden = asked
    rows = golden["sheets"][sheet]["rows"]
    scores = [task.score(sample, row["answer"]) for sample, row in zip(samples, rows, strict=True)]
    assert all(score is not None and 0 <= score <= 1 for score in scores)
    if task.task in MEANS:  # metrics that are means of rows
        aggregated = golden["sheets"][sheet]["aggregated"][task.primary]
        assert fmean(scores) * 100 == pytest.approx(aggregated * task.scale)


def test_a_question_is_the_prompt_without_how_to_answer(asked):
    for sample in asked[1]:
        assert "nswer the question" not in sample.question
        assert "option's letter" not in sample.question
        assert "best option" not in sample.question
        assert sample.question.strip() == sample.question != ""


def test_generation(asked):
    task, _, golden = asked
    assert task.max_new_tokens == golden["generation_kwargs"].get("max_new_tokens", 128)
    assert (task.title, task.scale) == (BENCHMARKS[task.task].title, BENCHMARKS[task.task].scale)
    assert task.finish(" <think>hm, ASSISTANT: no</think> yes\n\nno ") == "yes\n\nno"
    stopped = task.finish("yes ASSISTANT: no")
    assert stopped == ("yes" if "ASSISTANT:" in golden["generation_kwargs"]["until"] else "yes ASSISTANT: no")
