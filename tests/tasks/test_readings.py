"""How answers are read; one sheet of answers to POPE, three F1."""

import json
from pathlib import Path

import pytest

from tokenprune.tasks import readings as r

GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures/lmms/golden.json").read_text())["tasks"]
POPE = {reading.harness: reading for reading in r.POPE_READINGS}


def pope(sheet):
    rows = GOLDEN["pope"]["sheets"][sheet]["rows"]
    return [(row["result"]["pope_accuracy"]["ground_truth"], row["answer"]) for row in rows]


@pytest.mark.parametrize(("harness", "f1"), [("lmms_eval", 0.667), ("llava", 0.606), ("vlmevalkit", 0.480)])
def test_one_sheet_of_answers_has_three_f1(harness, f1):
    assert r.yes_no_f1(pope("mixed"), POPE[harness]) == pytest.approx(f1, abs=5e-4)


@pytest.mark.parametrize("name", ["pope", "pope_adv"])
@pytest.mark.parametrize("sheet", ["truth", "mixed", "shifted"])
def test_the_reading_of_lmms_eval_gives_its_f1(name, sheet):
    rows = GOLDEN[name]["sheets"][sheet]["rows"]
    pairs = [(row["result"]["pope_accuracy"]["ground_truth"], row["answer"]) for row in rows]
    golden = GOLDEN[name]["sheets"][sheet]["aggregated"]["pope_f1_score"]
    assert r.yes_no_f1(pairs, POPE["lmms_eval"]) == pytest.approx(golden)


def test_f1_without_a_right_yes_is_zero():
    assert r.yes_no_f1([("no", "no"), ("yes", "no")], POPE["llava"]) == 0.0
    assert r.yes_no_f1([], POPE["lmms_eval"]) == 0.0


def test_yes_ratio_is_of_the_answers():
    assert r.yes_ratio(["yes", "no", "yes", "perhaps"], r.yes_no_lmms_eval) == pytest.approx(2 / 3)
    assert r.yes_ratio(["perhaps"], r.yes_no_lmms_eval) == 0.0


@pytest.mark.parametrize(
    ("answer", "lmms_eval", "llava", "vlmevalkit", "mme"),
    [
        ("Yes", "yes", "yes", "yes", "yes"),
        ("yes.", None, "yes", "yes", "yes"),
        ("Yes, there is.", None, "yes", "yes", "yes"),
        ("No", "no", "no", "no", "no"),
        ("NO.", None, "yes", "no", "no"),  # LLaVA knows No and no
        (" yes\n", "yes", "yes", "yes", "yes"),
        ("Y", None, "yes", None, None),
        ("not sure", None, "no", None, "no"),
        ("", None, "yes", None, None),
        ("There is no such thing", None, "no", "no", None),
        ("Yes. It is not far.", None, "yes", "yes", "yes"),  # LLaVA reads the first sentence alone
        ("no left left left", None, "no", "no", "no"),
        ("yes or no", None, "no", None, "yes"),
        ("yes-no", None, "yes", None, "yes"),
        ("No, it isn't", None, "no", "no", "no"),
        ("no-one says yes", None, "yes", None, "no"),  # a mark between two letters becomes a space
    ],
)
def test_yes_or_no(answer, lmms_eval, llava, vlmevalkit, mme):
    assert r.yes_no_lmms_eval(answer) == lmms_eval
    assert r.yes_no_llava(answer) == llava
    assert r.yes_no_vlmevalkit(answer) == vlmevalkit
    assert r.yes_no_mme(answer) == mme


@pytest.mark.parametrize("sheet", ["truth", "mixed", "shifted"])
def test_the_reading_of_mme_is_lmms_evals(sheet):
    truth = [row["answer"].lower() for row in GOLDEN["mme"]["sheets"]["truth"]["rows"]]
    for right, row in zip(truth, GOLDEN["mme"]["sheets"][sheet]["rows"], strict=True):
        (result,) = row["result"].values()
        assert (r.yes_no_mme_lmms_eval(row["answer"]) == right) == result["score"], row["answer"]


def test_lmms_eval_reads_single_letters_in_mme():
    answers = ["N.", "y", "x", " Yes", "...yes"]
    assert [r.yes_no_mme_lmms_eval(answer) for answer in answers] == ["no", "yes", None, "yes", "yes"]
    assert [r.yes_no_mme(answer) for answer in answers] == [None, None, None, "yes", None]


@pytest.mark.parametrize(
    ("answer", "llava", "lmms_eval", "plain"),
    [
        ("B", "B", "B", "B"),
        ("b", None, "B", "B"),
        ("B.", None, "B", "B"),
        ("B. a dog", "B", "B", "B"),
        ("(B)", None, None, "B"),
        ("The answer is B.", "B", None, "B"),
        ("The answer is B. The answer is C.", None, None, "B"),
        ("B: a dog", None, None, "B"),
        ("a dog", None, None, None),
        ("dogs", None, None, None),
        ("I think D", None, None, "D"),
        ("it is grade d", None, None, None),
        ("", None, None, None),
    ],
)
def test_letters(answer, llava, lmms_eval, plain):
    assert r.letter_llava(answer) == llava
    assert r.letter_lmms_eval(answer) == lmms_eval
    assert r.letter_plain(answer) == plain


@pytest.mark.parametrize("sheet", ["truth", "mixed", "shifted"])
def test_the_reading_of_scienceqa_is_lmms_evals(sheet):
    truth = [row["answer"] for row in GOLDEN["scienceqa"]["sheets"]["truth"]["rows"]]
    for right, row in zip(truth, GOLDEN["scienceqa"]["sheets"][sheet]["rows"], strict=True):
        assert (r.letter_lmms_eval(row["answer"]) == right) == row["result"]["exact_match"], row["answer"]


def test_gqa():
    assert [r.gqa_llava(text) for text in ("Red.", "red", " red", "the red")] == ["red", "red", " red", "the red"]
