"""What a session is told of finished cells."""

from pathlib import Path

import numpy as np
from programs import sweep_file

from tokenprune.sweeps import runner
from tokenprune.sweeps.grid import load_sweep
from tokenprune.sweeps.progress import prepare, states
from tokenprune.sweeps.report_cells import report_cells
from tokenprune.sweeps.tracking import Tracked


class Listening(Tracked):
    def __init__(self, answers):
        self.answers, self.told = answers, []

    def cell(self, finished):
        self.told.append(finished)


def heard(asked, answers):
    groups, folder = prepare(asked)
    session = Listening(answers)
    report_cells(list(states(groups, folder, False).values()), folder, session)
    return session.told


def test_records_answers_and_pictures(tmp_path):
    asked = load_sweep(sweep_file(tmp_path))
    outcome = runner.sweep(asked)
    told = heard(asked, 3)
    assert [(each.id, each.label) for each in told] == [
        (record.cell, f"{record.label} keep_tokens={record.budget['keep_tokens']}" if record.budget else record.label)
        for record in outcome.records
    ]
    assert [each.metrics for each in told] == [record.metrics for record in outcome.records]
    assert {len(each.answers) for each in told} == {3}
    none, random, *_ = told
    whole, kept = none.picture(none.answers[0]), random.picture(random.answers[0])
    assert (whole.dtype, whole.shape) == (np.uint8, kept.shape)
    assert (kept != whole).any(), "what was dropped is dimmed"
    assert random.config["pruner"]["name"] == "random"
    assert random.config["provenance"]["model"] == outcome.records[0].provenance.model


def test_without_a_table_no_answers_are_read(tmp_path, monkeypatch):
    asked = load_sweep(sweep_file(tmp_path))
    folder = runner.sweep(asked).folder
    (folder.path / "samples.jsonl").rename(folder.path / "elsewhere")
    assert [each.answers for each in heard(asked, 0)] == []  # their records do not count without their answers
    (folder.path / "elsewhere").rename(folder.path / "samples.jsonl")
    assert [len(each.answers) for each in heard(asked, 0)] == [0] * 5


def test_a_policy_is_attached(tmp_path):
    policy = Path(__file__).parents[2] / "experiments/dop_equal_flops/policies/cdpruner/84M.yaml"
    overrides = ["task.num_samples=2", f"grid.pruner=[{{name: dop, policy: {policy}}}]", "grid.budget.keep_tokens=[12]"]
    asked = load_sweep(sweep_file(tmp_path), ["model={name: embedded, path: null}", *overrides])
    runner.sweep(asked)
    assert [each.files for each in heard(asked, 1)][-1] == [policy]
