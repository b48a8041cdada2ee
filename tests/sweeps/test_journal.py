"""Journals: whole lines only, nothing lost."""

import json
import tracemalloc
from pathlib import Path

import pytest

from tokenprune.core.errors import DataError
from tokenprune.sweeps.journal import Journal


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


@pytest.mark.parametrize("length", [10, 1 << 16, 200_000])
def test_only_the_last_line_is_looked_at_when_it_is_opened(tmp_path, length):
    path = tmp_path / "a.jsonl"
    whole = b'{"a": 1}\n' + json.dumps({"b": "x" * length}).encode()
    for rest, left in ((b"", whole + b"\n"), (b"\n", whole + b"\n"), (b'\n{"c', whole + b"\n")):
        path.write_bytes(whole + rest)
        Journal(path).open()
        assert path.read_bytes() == left


def test_a_large_file_need_not_fit_into_memory(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": "' + b"x" * 1000 + b'"}\n')
    path.write_bytes(path.read_bytes() * 5000)
    tracemalloc.start()
    assert sum(1 for _ in Journal(path)) == 5000
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_full_disk_is_told_in_a_sentence(tmp_path):
    path = tmp_path / "a.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"a\.jsonl cannot be written: No space left on device; all whole lines in it"):
        Journal(path).append({"a": 1})


def test_numbers_that_json_does_not_have_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    with pytest.raises(ValueError, match="not JSON compliant"):
        Journal(path).append({"a": 1}, {"a": float("nan")})
    assert not Path(path).exists()
