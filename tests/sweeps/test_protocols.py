"""A protocol is a name that must exist, stands in records, and changes no result."""

import pytest

from tokenprune.core.errors import ConfigError
from tokenprune.sweeps.build import build_all
from tokenprune.sweeps.config import parse_config
from tokenprune.sweeps.grid import parse_sweep
from tokenprune.sweeps.keys import key_cells
from tokenprune.sweeps.protocols import PROTOCOLS, check_protocol
from tokenprune.sweeps.store import run_id

RUN = {"task": {"name": "scenes", "num_samples": 2}, "pruner": "uniform", "budget": {"keep_tokens": 10}}


def test_one_that_there_is_not():
    check_protocol(None)
    for name in PROTOCOLS:
        check_protocol(name)
    with pytest.raises(ConfigError, match="there is no protocol 'llava_15'; did you mean 'llava15'"):
        parse_config(RUN | {"protocol": "llava_15"})


def test_it_is_written_only_if_there_is_one():
    assert "protocol" not in parse_config(RUN).to_mapping()
    said = parse_config(RUN | {"protocol": "llava15"})
    assert said.to_mapping()["protocol"] == "llava15"
    assert parse_config(said.to_mapping()) == said


def test_it_changes_neither_folder_nor_keys():
    without, said = parse_config(RUN), parse_config(RUN | {"protocol": "llava15"})
    assert run_id(without) == run_id(said)
    keys = []
    for config in (without, said):
        (experiment,) = build_all([config])
        keys.append([each.key for each in key_cells(experiment, experiment.task.samples())])
    assert keys[0] == keys[1]


def test_one_model_and_task_follow_one():
    asked = parse_sweep(RUN | {"zip": [{"protocol": ["llava15", "llava_next"], "seed": [0, 1]}]})
    with pytest.raises(ConfigError, match="follow one protocol, got 'llava15' and 'llava_next'"):
        build_all(asked.runs, asked.names)
