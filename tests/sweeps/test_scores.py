"""What tasks say of answers, from one score to a table: fractions, none at all, metrics of all answers together."""

import dataclasses
import json
from dataclasses import dataclass

import pytest

from tokenprune import report
from tokenprune.core.errors import DataError
from tokenprune.core.registry import Entry
from tokenprune.engine.session import Session
from tokenprune.report.results import console_table
from tokenprune.report.rows import sections_of
from tokenprune.sweeps import runner
from tokenprune.sweeps.config import parse_config
from tokenprune.sweeps.scores import score_answer, scores_of
from tokenprune.tasks.base import TASKS
from tokenprune.tasks.scenes import Scenes
from tokenprune.testing.checkpoints import save_llava

GIVEN = ("yes", " YES ", "no", "what", "")


@dataclass(frozen=True, kw_only=True)
class Rated(Scenes):
    """Answers are rated by what they begin with, in fractions."""

    num_samples: int = 6

    def finish(self, text):
        return text.strip().lower()

    def score(self, sample, answer):
        return {"yes": 1.0, "no": 0.25}.get(answer, 0.0)


@dataclass(frozen=True, kw_only=True)
class Corpus(Rated):
    """The share of yes among what can be read, and no scores."""

    broken: bool = False
    named: str = "yes_share"

    max_new_tokens = 2
    title = "Share of yes"
    scale = 10.0

    @property
    def primary(self):
        return self.named

    def score(self, sample, answer):
        return None

    def unparsed(self, sample, answer):
        return answer not in ("yes", "no")

    def metrics(self, answers):
        if self.broken:
            raise ZeroDivisionError("nobody answered")
        assert [sample.id for sample, _ in answers] == [sample.id for sample in self.samples()]
        read = [answer for _, answer in answers if answer in ("yes", "no")]
        return {"yes_share": read.count("yes") / len(read), "nothing": float("nan")}

    def fingerprint(self):
        return "1"


@pytest.fixture(autouse=True)
def tasks(monkeypatch):
    TASKS.names()
    for name, task in {"rated": Rated, "corpus": Corpus}.items():
        monkeypatch.setitem(TASKS._entries, name, Entry(name, task, "", None))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(save_llava(tmp_path_factory.mktemp("llava")))


@pytest.fixture
def config(checkpoint, tmp_path):
    def make(task, **options):
        values = {
            "model": {"name": "llava", "path": checkpoint},
            "task": {"name": task, **options},
            "pruner": "uniform",
            "budget": {"keep_tokens": 5},
            "batch_size": 3,
            "timing_repeats": 0,
            "output": str(tmp_path / "runs"),
        }
        return parse_config(values)

    return make


@pytest.fixture
def answers(monkeypatch):
    """What the model says: the first five of ``GIVEN`` in turn; without pruning always yes."""
    generate, asked = Session.generate, []

    def say(self, inputs, **options):
        ran = generate(self, inputs, **options)
        asked.append(options["max_new_tokens"])
        pruned = bool(getattr(inputs, "chosen", None)) and any(c.selection.keep.shape[1] == 5 for c in inputs.chosen)
        said = [GIVEN[(len(asked) + row) % len(GIVEN)] if pruned else "Yes" for row in range(len(ran.output))]
        return dataclasses.replace(ran, output=said)

    monkeypatch.setattr(Session, "generate", say)
    return asked


def test_fractions(config, answers):
    outcome = runner.run(config("rated"))
    assert not outcome.failed
    none, *_, uniform = (record.metrics for record in outcome.records)
    lines = [json.loads(line) for line in outcome.folder.samples.path.read_text().splitlines()]
    own = [line for line in lines if line["cell"] == outcome.records[-1].cell]
    scores = [line["correct"] for line in own]
    assert 0.25 in scores
    assert {line["answer"] for line in lines} <= {"yes", "no", "what", ""}
    assert none["score"] == none["accuracy"] == 1.0
    assert uniform["accuracy"] == pytest.approx(sum(scores) / 6)
    assert uniform["retention"] == uniform["score"] == uniform["accuracy"]
    assert uniform["scores"] == {}
    assert uniform["unparsed"] is None
    assert none["changed"] is None
    assert uniform["changed"] == sum(line["answer"] != "yes" for line in own) / 6


def test_metrics_of_all_answers(config, answers):
    outcome = runner.run(config("corpus"))
    assert not outcome.failed
    record = outcome.records[-1]
    lines = [json.loads(line) for line in outcome.folder.samples.path.read_text().splitlines()]
    own = [line for line in lines if line["cell"] == record.cell]
    said = [line["answer"] for line in own]
    assert {line["correct"] for line in own} == {None}
    share = said.count("yes") / (said.count("yes") + said.count("no"))
    assert record.metrics["scores"] == {"yes_share": share}
    assert record.metrics["score"] == record.metrics["retention"] == share
    assert record.metrics["accuracy"] is None
    assert record.metrics["unparsed"] == sum(line["unparsed"] for line in own) / 6 > 0
    assert record.scoring == {"title": "Share of yes", "primary": "yes_share", "scale": 10.0}
    assert record.config["max_new_tokens"] == 2
    assert set(answers) == {2}
    path = report.write(outcome.folder, outcome.samples)
    text = path.read_text()
    assert "Share of yes" in text
    assert f"| {10 * share:.1f} | - |" in text
    assert "unparsed %" in text


def test_tables_stay_short_without_own_metrics(config, answers):
    text = report.write(runner.run(config("rated")).folder, []).read_text()
    assert "unparsed" not in text
    assert "| score" not in text
    assert "task rated" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [({"broken": True}, "nobody answered"), ({"named": "other"}, "Corpus gives no metric 'other', its primary one")],
)
def test_a_failing_aggregator_fails_the_record_and_not_the_sweep(config, answers, options, said):
    outcome = runner.run(config("corpus", **options))
    assert len(outcome.failed) == len(outcome.records) == 3
    assert all(said in record.error for record in outcome.failed)
    assert len(outcome.folder.samples.path.read_text().splitlines()) == 18


def test_nothing_changed_is_said(config, monkeypatch):
    generate = Session.generate

    def same(self, inputs, **options):
        ran = generate(self, inputs, **options)
        return dataclasses.replace(ran, output=["yes"] * len(ran.output))

    monkeypatch.setattr(Session, "generate", same)
    none, random, uniform = runner.run(config("rated")).records
    assert none.notes == []
    assert random.notes == uniform.notes == [runner.UNCHANGED]


def test_what_decides_outside_of_the_source_makes_results_stale(config, answers, monkeypatch):
    runner.run(config("corpus"))
    number = len(answers)
    runner.run(config("corpus"))
    assert len(answers) == number
    monkeypatch.setattr(Corpus, "fingerprint", lambda self: "2")
    runner.run(config("corpus"))
    assert len(answers) == 2 * number


def test_a_score_is_in_0_to_1():
    class Bad(Rated):
        def score(self, sample, answer):
            return 2.0

    with pytest.raises(DataError, match="Bad scores 'x' with 2"):
        score_answer(Bad(), Bad().samples()[0], "x")


def test_an_answer_that_is_missing_is_named():
    samples = Corpus().samples()
    with pytest.raises(DataError, match=f"the answer to {samples[0].id!r} is missing"):
        scores_of(Corpus(), samples, {}, {"accuracy": None, "unparsed": 0.0})


def test_the_console_table_has_the_score(config, answers):
    outcome = runner.run(config("corpus"))
    table = console_table(outcome.records)
    assert "score" in [column.header for column in table.columns]
    (section,) = sections_of(outcome.records, {})
    assert section.title.endswith("Share of yes")
