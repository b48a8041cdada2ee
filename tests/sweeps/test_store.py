"""Files of a run: whole lines only, nothing lost, nothing overwritten."""

import dataclasses
import json
import subprocess
import sys
import threading

import pytest
from unprivileged import unprivileged

from tokenprune.core.errors import DataError
from tokenprune.sweeps.config import parse_config
from tokenprune.sweeps.journal import Journal
from tokenprune.sweeps.provenance import Provenance
from tokenprune.sweeps.store import RunFolder, RunRecord, run_id


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


def test_run_id_ignores_where_results_go(tmp_path):
    base = run_id(config(tmp_path))
    assert run_id(config("elsewhere", tracking="wandb")) == base
    assert run_id(config(tmp_path, seed=1)) != base
    assert run_id(config(tmp_path, budget={"keep_tokens": [4]})) != base


def test_a_record_survives_the_disk():
    line = json.loads(json.dumps(record(error="x").to_mapping()))
    assert RunRecord.from_mapping(line) == record(error="x")


def write(folder, *records, **options):
    with folder.writing({"a": 1}, **options):
        folder.results.append(*(each.to_mapping() for each in records))
    return folder


def test_fresh_sets_earlier_results_aside(tmp_path):
    folder = RunFolder(tmp_path)
    for number in range(3):
        with folder.writing({}, fresh=True):
            assert folder.results.read() == []
            folder.results.append(record(seed=number).to_mapping())
            folder.samples.append({"cell": "k", "sample": str(number)})
    names = {path.name for path in folder.path.iterdir()}
    assert names == {
        *(".lock", "config.yaml", "results.jsonl", "results.1.jsonl", "results.2.jsonl"),
        *("samples.jsonl", "samples.1.jsonl", "samples.2.jsonl"),
    }
    assert Journal(folder.path / "results.1.jsonl").read()[0]["seed"] == 0
    assert Journal(folder.path / "samples.2.jsonl").read()[0]["sample"] == "1"


def test_going_on_keeps_everything(tmp_path):
    write(RunFolder(tmp_path), record())
    assert write(RunFolder(tmp_path)).records() == [record()]
    assert (tmp_path / "config.yaml").read_text() == "a: 1\n"


def test_the_latest_record_of_a_cell_counts(tmp_path):
    other, elsewhere = record(label="random"), record(config={"model": {"name": "llava"}})
    folder = write(RunFolder(tmp_path), record(status="failed", error="x"), other, elsewhere, record(cell="new code"))
    assert folder.records() == [record(cell="new code"), other, elsewhere]


def test_records_of_another_version(tmp_path, caplog):
    folder = RunFolder(tmp_path)
    folder.results.append({"from": "long ago"}, record().to_mapping())
    assert folder.records() == [record()]
    assert "another version" in caplog.text
    with pytest.raises(DataError, match=r"results\.jsonl line 1 is of another version.*another output.*--fresh"):
        write(folder)
    assert write(folder, record(), fresh=True).records() == [record()]


def test_answers_by_cell_and_sample(tmp_path):
    folder = RunFolder(tmp_path)
    folder.samples.append({"cell": "k", "sample": "1", "answer": "a"}, {"cell": "l", "sample": "1", "answer": "b"})
    assert folder.answers()["l"]["1"]["answer"] == "b"
    assert set(folder.answers({"k"})) == {"k"}


def test_one_writes_at_a_time(tmp_path, caplog):
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    with first.writing({}):
        with pytest.raises(DataError, match=r"another run is writing to .* \(it holds '.*\.lock'\); .* add --wait"):
            write(second, fresh=True)
        waiting = threading.Thread(target=write, args=(second, record()), kwargs={"wait": True})
        waiting.start()
        first.results.append(record(cell="first").to_mapping())
        waiting.join(0.2)
        assert waiting.is_alive()
    waiting.join(10)
    assert [line["cell"] for line in first.results] == ["first", "k"]
    assert "waiting" in caplog.text


def test_a_lock_ends_with_its_process(tmp_path):
    code = "import os, sys; from pathlib import Path; from tokenprune.sweeps.store import RunFolder\n"
    code += f"with RunFolder(Path({str(tmp_path)!r})).writing({{}}): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    write(RunFolder(tmp_path), record())


def test_read_only_folder(tmp_path):
    tmp_path.chmod(0o755)
    target = tmp_path / "runs"
    target.mkdir(mode=0o555)
    with unprivileged(), pytest.raises(DataError, match="cannot be written: Permission denied"):
        write(RunFolder(target / "r"))


def test_read_only_journal(tmp_path):
    folder = write(RunFolder(tmp_path), record())
    tmp_path.chmod(0o755)
    for name in ("config.yaml", ".lock"):
        (tmp_path / name).chmod(0o666)
    folder.results.path.chmod(0o444)
    with unprivileged(), pytest.raises(DataError, match="cannot be written"):
        write(folder)
    assert folder.records() == [record()]


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write(RunFolder(tmp_path / "runs" / "r"))


def test_records_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        record().seed = 3
