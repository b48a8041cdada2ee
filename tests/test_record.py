"""Files of a run: whole lines only, nothing lost, nothing overwritten."""

import dataclasses
import json
import os
from contextlib import contextmanager

import pytest

from tokenprune.config import parse_config
from tokenprune.errors import DataError
from tokenprune.provenance import Provenance
from tokenprune.record import Journal, RunFolder, RunRecord, run_id


def config(tmp_path, **changes):
    return parse_config({"pruner": "cdpruner", "budget": {"keep_tokens": [3]}, "output": str(tmp_path), **changes})


def record(**changes):
    origin = Provenance(code="c", git=None, versions={"torch": "2"}, device="cpu", model="m", data="d")
    values = {
        "run": "r",
        "cell": "k",
        "label": "cdpruner",
        "pruner": {"name": "cdpruner"},
        "budget": {"keep_tokens": 3},
        "config": {},
        "provenance": origin,
        "seed": 0,
        "status": "ok",
        "metrics": {"accuracy": 0.5},
        "seconds": 1.0,
        "finished": "2026-01-01T00:00:00+00:00",
    }
    return RunRecord(**(values | changes))


@contextmanager
def unprivileged():
    """Root may write anywhere, so that a test of permissions must not be root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_run_id_ignores_where_results_go(tmp_path):
    base = run_id(config(tmp_path))
    assert run_id(config("elsewhere", tracking="wandb")) == base
    assert run_id(config(tmp_path, seed=1)) != base
    assert run_id(config(tmp_path, budget={"keep_tokens": [4]})) != base


def test_a_record_survives_the_disk():
    line = json.loads(json.dumps(record(error="x").to_mapping()))
    assert RunRecord.from_mapping(line) == record(error="x")


def test_append_and_read(tmp_path):
    journal = Journal(tmp_path / "a.jsonl")
    assert journal.read() == []
    journal.append({"a": 1}, {"b": "é"})
    journal.append({"c": None})
    assert journal.read() == [{"a": 1}, {"b": "é"}, {"c": None}]


@pytest.mark.parametrize("rest", [b'{"c": 3', b'{"c": 3,\x00', b"\xff"])
def test_a_half_written_last_line_is_dropped(tmp_path, caplog, rest):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": 2}\n' + rest)
    journal = Journal(path)
    assert journal.read() == [{"a": 1}, {"b": 2}]
    journal.open()
    assert "half-written" in caplog.text
    journal.append({"d": 4})
    assert path.read_bytes() == b'{"a": 1}\n{"b": 2}\n{"d": 4}\n'


def test_a_whole_last_line_without_line_break_is_kept(tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": 2}')
    journal = Journal(path)
    journal.open()
    journal.append({"c": 3})
    assert journal.read() == [{"a": 1}, {"b": 2}, {"c": 3}]
    assert not caplog.records


def test_damage_inside_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\nnonsense\n{"b": 2}\n')
    with pytest.raises(DataError, match="line 2 is not a JSON object"):
        Journal(path).read()


def test_fresh_sets_earlier_results_aside(tmp_path):
    for number in range(3):
        folder = RunFolder.create(config(tmp_path), fresh=True)
        assert folder.results.read() == []
        folder.results.append(record(seed=number).to_mapping())
        folder.samples.append({"cell": "k", "sample": str(number)})
    names = {path.name for path in folder.path.iterdir()}
    assert names == {
        *("config.yaml", "results.jsonl", "results.1.jsonl", "results.2.jsonl"),
        *("samples.jsonl", "samples.1.jsonl", "samples.2.jsonl"),
    }
    assert Journal(folder.path / "results.1.jsonl").read()[0]["seed"] == 0
    assert Journal(folder.path / "samples.2.jsonl").read()[0]["sample"] == "1"


def test_going_on_keeps_everything(tmp_path):
    RunFolder.create(config(tmp_path)).results.append(record().to_mapping())
    assert RunFolder.create(config(tmp_path)).records() == [record()]


def test_the_latest_record_of_a_cell_counts(tmp_path):
    folder = RunFolder.create(config(tmp_path))
    other = record(label="random")
    for line in (record(status="failed", error="x"), other, record()):
        folder.results.append(line.to_mapping())
    assert folder.records() == [record(), other]


def test_records_of_another_version_are_left_out(tmp_path, caplog):
    folder = RunFolder.create(config(tmp_path))
    folder.results.append({"from": "long ago"}, record().to_mapping())
    assert folder.records() == [record()]
    assert "another version" in caplog.text


def test_answers_by_cell_and_sample(tmp_path):
    folder = RunFolder.create(config(tmp_path))
    folder.samples.append({"cell": "k", "sample": "1", "answer": "a"}, {"cell": "l", "sample": "1", "answer": "b"})
    assert folder.answers()["l"]["1"]["answer"] == "b"


def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o755)
    target = tmp_path / "runs"
    target.mkdir(mode=0o555)
    with unprivileged(), pytest.raises(DataError, match="cannot be written: Permission denied"):
        RunFolder.create(config(target))


def test_read_only_journal(tmp_path):
    folder = RunFolder.create(config(tmp_path))
    folder.results.append(record().to_mapping())
    for path in (tmp_path, folder.path):
        path.chmod(0o755)
    (folder.path / "config.yaml").chmod(0o666)
    folder.results.path.chmod(0o444)
    with unprivileged(), pytest.raises(DataError, match="cannot be written"):
        RunFolder.create(config(tmp_path))
    assert folder.records() == [record()]


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        RunFolder.create(config(tmp_path / "runs"))


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        record().seed = 3
