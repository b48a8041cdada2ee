"""Trackers: Weights & Biases is run for real, offline, and what it wrote is read back."""

import json
import logging
import struct

import pytest
import wandb

from tokenprune.errors import RegistryError
from tokenprune.tracking import TRACKERS, NoTracker, Session, Tracker, WandbTracker, start_tracking

CONFIG = {"pruner": {"name": "cdpruner", "theta": 0.5}, "budget": {"keep_tokens": [48]}}
METRICS = {"accuracy": 0.75, "average_tokens": 48, "retention": None, "accuracy_by_kind": {"color": 0.5}}


def test_names():
    assert TRACKERS.names() == ["none", "wandb"]
    with pytest.raises(RegistryError, match="unknown tracker 'wanbd'; did you mean 'wandb'"):
        TRACKERS.get("wanbd")


def test_none_forgets(tmp_path):
    session = start_tracking(NoTracker(), "r", CONFIG, tmp_path)
    session.log(0, "cdpruner", METRICS)
    session.finish()
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
    """The id, configuration and history in a .wandb file."""
    from wandb.proto.wandb_internal_pb2 import Record

    run, config, history = None, {}, []
    for payload in chunks(path.read_bytes()):
        record = Record.FromString(payload)
        if record.WhichOneof("record_type") == "run":
            run = record.run.run_id
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            history.append({".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    return run, config, history


def test_wandb_offline_for_real(tmp_path, caplog):
    session = start_tracking(WandbTracker(mode="offline", project="p"), "abc123", CONFIG, tmp_path)
    session.log(0, "none", {"accuracy": 1.0, "average_tokens": 144})
    session.log(1, "cdpruner", METRICS)
    session.finish()
    wandb.teardown()  # its service writes a moment longer than finish() waits; at exit this happens by itself
    assert "tracking stops" not in caplog.text
    (file,) = tmp_path.glob("wandb/offline-run-*/run-abc123.wandb")
    run, config, history = read_back(file)
    assert run == "abc123"
    assert config["pruner"] == CONFIG["pruner"]
    assert [line["_step"] for line in history] == [0, 1]
    assert history[0]["none/accuracy"] == 1.0
    assert history[1]["cdpruner/accuracy"] == 0.75
    assert history[1]["cdpruner/average_tokens"] == 48
    assert "cdpruner/retention" not in history[1]
    assert history[1]["cdpruner/accuracy_by_kind.color"] == 0.5


def test_wandb_disabled_writes_nothing(tmp_path):
    session = start_tracking(WandbTracker(mode="disabled"), "abc123", CONFIG, tmp_path)
    session.log(0, "none", METRICS)
    session.finish()
    assert not list(tmp_path.glob("wandb/*run-*"))


class Broken(Tracker):
    """Fails where it is told to."""

    def __init__(self, where):
        self.where, self.logged, self.finished = where, 0, 0

    def start(self, run, config, folder):
        if self.where == "start":
            raise ConnectionError("no network")
        outer = self

        class Failing(Session):
            def log(self, index, label, metrics):
                outer.logged += 1
                if outer.where == "log":
                    raise ConnectionError("no network")

            def finish(self):
                outer.finished += 1
                raise ConnectionError("no network")

        return Failing()


@pytest.mark.parametrize("where", ["start", "log", "finish"])
def test_failures_are_reported_once_and_cost_nothing(tmp_path, caplog, where):
    with caplog.at_level(logging.WARNING, "tokenprune"):
        tracker = Broken(where)
        session = start_tracking(tracker, "r", CONFIG, tmp_path)
        for index in range(3):
            session.log(index, "cdpruner", METRICS)
        session.finish()
    assert [r.getMessage() for r in caplog.records] == [
        "tracking stops (ConnectionError: no network); results go on to the disk"
    ]
    assert (tracker.logged, tracker.finished) == {"start": (0, 0), "log": (1, 1), "finish": (3, 1)}[where]
