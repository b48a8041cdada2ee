"""Trackers: Weights & Biases is run for real, offline, and what it wrote is read back."""

import json
import logging
import struct

import numpy as np
import pytest
import wandb
from PIL import Image

from tokenprune.core.errors import ConfigError, RegistryError
from tokenprune.sweeps.tracking import TRACKERS, Finished, NoTracker, Tracked, Tracker, WandbTracker, start_tracking
from tokenprune.sweeps.wandb_commands import offline_runs

CONFIG = {"pruner": {"name": "cdpruner", "theta": 0.5}, "budget": {"keep_tokens": 48}}
METRICS = {"accuracy": 0.75, "average_tokens": 48, "retention": None, "accuracy_by_kind": {"color": 0.5}}
LINES = [
    {"sample": f"s{i}", "kind": "color", "question": "which?", "truth": "red", "answer": "blue", "correct": 0.0}
    for i in range(40)
]


def finished(number="abc123", **changes):
    return Finished(**{"id": number, "label": "cdpruner", "config": CONFIG, "metrics": METRICS, **changes})


def test_names():
    assert TRACKERS.names() == ["none", "wandb"]
    with pytest.raises(RegistryError, match="unknown tracker 'wanbd'; did you mean 'wandb'"):
        TRACKERS.get("wanbd")


def test_none_forgets(tmp_path):
    session = start_tracking(NoTracker(), "r", tmp_path)
    session.cell(finished())
    session.finish([tmp_path / "results.jsonl"])
    assert list(tmp_path.iterdir()) == []


def chunks(data):
    """Payloads in a .wandb file: a 7-byte header, then LevelDB log records in blocks of 32 KiB."""
    position, payload = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        payload += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield payload
            payload = b""


def read_back(path):
    """What a .wandb file says: the run's record, configuration, history, summary and the files it names."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = {"config": {}, "history": [], "summary": {}, "files": [], "artifacts": [], "exit": None}
    for payload in chunks(path.read_bytes()):
        record = Record.FromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
            found["config"] |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if kind == "history":
            items = record.history.item
            found["history"].append({".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
        if kind == "summary":
            found["summary"] |= {i.key: json.loads(i.value_json) for i in record.summary.update}
        if kind == "files":
            found["files"] += [file.path for file in record.files.files]
        if kind == "artifact":
            found["artifacts"] += [entry.path for entry in record.artifact.manifest.contents]
        if kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def track(folder, *cells, files=(), **options):
    session = start_tracking(WandbTracker(project="p", **options), "sweep7", folder)
    for cell in cells:
        session.cell(cell)
    session.finish(files)
    wandb.teardown()  # its service writes a moment longer than finish() waits; at exit this happens by itself


def runs(folder, number):
    return [read_back(file) for file in sorted(folder.glob(f"wandb/offline-run-*/run-{number}.wandb"))]


def test_wandb_offline_for_real(tmp_path, caplog):
    policy, picture, journal = (tmp_path / name for name in ("policy.json", "pareto.png", "results.jsonl"))
    policy.write_text("{}")
    journal.write_text("{}\n")
    Image.new("RGB", (8, 8)).save(picture)
    shown = []

    def draw(line):
        shown.append(line["sample"])
        return np.zeros((4, 4, 3), np.uint8)

    good = finished(answers=LINES[:24], picture=draw, files=[policy])
    bad = finished("def456", metrics={}, error="Traceback\nValueError: no")
    track(tmp_path, good, bad, files=[journal, picture])
    assert "tracking stops" not in caplog.text
    (one,), (two,), (report,) = (runs(tmp_path, number) for number in ("abc123", "def456", "sweep7-report"))
    assert {(each["run"].run_id, each["run"].run_group, each["run"].project) for each in (one, two, report)} == {
        (number, "sweep7", "p") for number in ("abc123", "def456", "sweep7-report")
    }
    assert one["config"]["pruner"] == CONFIG["pruner"]
    logged = {name: value for line in one["history"] for name, value in line.items()}
    assert logged["accuracy"] == 0.75
    assert logged["accuracy_by_kind.color"] == 0.5
    assert "retention" not in logged
    assert shown == [f"s{i}" for i in range(24)]
    assert logged["samples.nrows"] == 24
    assert logged["samples.ncols"] == 8
    assert "policy.json" in one["artifacts"]
    assert (one["summary"]["status"], one["exit"]) == ("ok", 0)
    assert (two["summary"]["status"], two["exit"]) == ("failed", 1)
    assert "ValueError: no" in two["summary"]["error"]
    assert report["artifacts"] == ["results.jsonl"]
    assert any("pareto" in file for file in report["files"])


def test_a_cell_is_tracked_once(tmp_path):
    track(tmp_path, finished("abc123"))
    track(tmp_path, finished("abc123"), finished("def456"))
    assert len(runs(tmp_path, "abc123")) == len(runs(tmp_path, "def456")) == 1


def test_a_cell_whose_run_was_cut_off_goes_on_under_the_same_id(tmp_path):
    track(tmp_path, finished("abc123"))
    (tmp_path / "wandb" / "tracked.txt").unlink()  # as if killed before the run was whole
    for folder in list((tmp_path / "wandb").glob("offline-run-*")):
        folder.rename(folder.with_name("offline-run-20200101_000000-abc123"))
    track(tmp_path, finished("abc123"))
    again = runs(tmp_path, "abc123")
    assert [each["run"].run_id for each in again] == ["abc123", "abc123"]
    assert len(offline_runs(tmp_path)) == 2


def test_wandb_disabled_writes_nothing(tmp_path):
    track(tmp_path, finished(answers=LINES), mode="disabled")
    assert not list(tmp_path.glob("wandb/*run-*"))
    assert not list(tmp_path.glob("wandb/*.txt"))


def test_online_without_a_login_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()
    with pytest.raises(ConfigError, match=r"needs a login; run 'wandb login', or set tracking\.mode=offline"):
        WandbTracker(mode="online").check()
    WandbTracker(mode="offline").check()


def test_without_the_package(monkeypatch):
    monkeypatch.setattr("tokenprune.sweeps.tracking.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package wandb"):
        WandbTracker().check()


class Broken(Tracker):
    """Fails where it is told to."""

    def __init__(self, where):
        self.where, self.logged, self.finished = where, 0, 0

    def start(self, group, folder):
        if self.where == "start":
            raise ConnectionError("no network")
        outer = self

        class Failing(Tracked):
            def cell(self, finished):
                outer.logged += 1
                if outer.where == "cell":
                    raise ConnectionError("no network")

            def finish(self, files=()):
                outer.finished += 1
                raise ConnectionError("no network")

        return Failing()


@pytest.mark.parametrize("where", ["start", "cell", "finish"])
def test_failures_are_reported_once_and_cost_nothing(tmp_path, caplog, where):
    with caplog.at_level(logging.WARNING, "tokenprune"):
        tracker = Broken(where)
        session = start_tracking(tracker, "r", tmp_path)
        for index in range(3):
            session.cell(finished(str(index)))
        session.finish()
    assert [r.getMessage() for r in caplog.records] == [
        "tracking stops (ConnectionError: no network); results go on to the disk"
    ]
    assert (tracker.logged, tracker.finished) == {"start": (0, 0), "cell": (1, 1), "finish": (3, 1)}[where]
