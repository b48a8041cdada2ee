"""Other harnesses' readings of the same answers, as metrics of a task."""

import pytest

from tokenprune.tasks.lmms_eval import LmmsEval

pytestmark = [pytest.mark.lmms, pytest.mark.filterwarnings("default")]


def found(task, hub, golden, sheet):
    made = LmmsEval(task=task, root=str(hub))
    samples, rows = made.samples(), golden[task]["sheets"][sheet]["rows"]
    answers = [(sample, row["answer"]) for sample, row in zip(samples, rows, strict=True)]
    return made.metrics(answers), [made.unparsed(*pair) for pair in answers]


def test_pope_in_three_readings(hub, golden):
    metrics, unparsed = found("pope", hub, golden, "mixed")
    assert metrics["pope_f1_lmms_eval"] == pytest.approx(metrics["pope_f1_score"]) == pytest.approx(0.667, abs=5e-4)
    assert metrics["pope_f1_llava"] == pytest.approx(0.606, abs=5e-4)
    assert metrics["pope_f1_vlmevalkit"] == pytest.approx(0.480, abs=5e-4)
    assert sum(unparsed) == 18
    assert metrics["pope_answered_yes"] != metrics["pope_yes_ratio"]  # which is the truth's


def test_mme(hub, golden):
    metrics, unparsed = found("mme", hub, golden, "mixed")
    assert metrics["mme_total"] == metrics["mme_perception_score"] + metrics["mme_cognition_score"] == 550
    assert metrics["mme_perception_llava"] == 300
    metrics, _ = found("mme", hub, golden, "shifted")  # with "Y", which MME's own tool cannot read
    assert (metrics["mme_perception_llava"], metrics["mme_perception_score"]) == (200, 400)
    assert sum(unparsed) == 2


def test_scienceqa_and_gqa(hub, golden):
    metrics, _ = found("scienceqa_img", hub, golden, "mixed")
    assert (metrics["exact_match"], metrics["scienceqa_accuracy_llava"]) == (0.5, 0.375)
    metrics, _ = found("gqa", hub, golden, "truth")
    assert metrics["gqa_accuracy_llava"] == 1.0
