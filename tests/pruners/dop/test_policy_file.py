"""The policy file: what is written is read, and each mistake in one is one sentence."""

import copy
import json
import os
from dataclasses import replace

import pytest
import yaml

from tokenprune.core.errors import ConfigError, DataError
from tokenprune.core.sizes import ModelSpec
from tokenprune.pruners.dop import policy_file

DELETE = object()


def test_round_trip(policy, spec, tmp_path):
    path = tmp_path / "new" / "policy.yaml"
    policy_file.save(policy, path)
    assert policy_file.load(path) == policy
    assert policy_file.load(str(path), spec) == policy
    assert [file.name for file in path.parent.iterdir()] == ["policy.yaml"]


def test_curves_and_numbers_come_back_to_the_last_bit(policy, tmp_path):
    policy_file.save(policy, tmp_path / "policy.yaml")
    again = policy_file.load(tmp_path / "policy.yaml")
    for name, curve in policy.curves.to_mapping().items():
        assert again.curves.to_mapping()[name].values.tobytes() == curve.values.tobytes()
    assert again.chosen.predicted.hex() == policy.chosen.predicted.hex()


def test_it_could_be_json(policy):
    mapping = policy_file.to_mapping(policy)
    assert json.loads(json.dumps(mapping, allow_nan=False)) == mapping
    assert policy_file.from_mapping(json.loads(json.dumps(mapping))) == policy


def test_what_a_reader_sees(two_depths, tmp_path):
    path = tmp_path / "policy.yaml"
    policy_file.save(two_depths, path)
    read = yaml.safe_load(path.read_text())
    assert list(read) == ["format", "origin", "base", "objective", "budget", "chosen", "candidates", "curves"]
    assert read["curves"]["attention"] == [[1, 1.7], [2, 0.9], [4, 0.11]]
    assert read["chosen"]["measured"] == 0.25
    depths = two_depths.depths
    assert read["chosen"]["depths"] == {
        "attention": depths.attention,
        "mlp": depths.mlp,
        "keep": depths.keep,
        "query": depths.query,
    }


def test_a_write_that_fails_leaves_the_old_file(two_depths, tmp_path, monkeypatch):
    path = tmp_path / "policy.yaml"
    policy_file.save(two_depths, path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        policy_file.save(replace(two_depths, candidates=()), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["policy.yaml"]


def test_an_option_that_yaml_cannot_hold(two_depths, tmp_path):
    path = tmp_path / "policy.yaml"
    with pytest.raises(ConfigError, match="cannot be written as YAML"):
        policy_file.save(replace(two_depths, base={"name": "x", "theta": object()}), path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file(two_depths, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(DataError, match=r"policy '.*taken/policy.yaml' cannot be written"):
        policy_file.save(two_depths, tmp_path / "taken" / "policy.yaml")


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (None, DataError, "cannot be read: No such file or directory"),
        (b"a: [1", ConfigError, "is not YAML: while parsing a flow sequence"),
        (b"\xff\xfe\xfa", ConfigError, "is not YAML: 'utf-8' codec can't decode"),
        (b"", ConfigError, "must be a mapping of keys to values, got None"),
        (b"- 1", ConfigError, "must be a mapping of keys to values, got [1]"),
        (b"a: 1", ConfigError, "has format None, but this version of tokenprune reads format 1"),
        (b"format: 2", ConfigError, "has format 2, but this version of tokenprune reads format 1"),
        (b"format: 1", ConfigError, "needs the option 'origin'"),
    ],
)
def test_not_a_policy(content, kind, message, tmp_path):
    path = tmp_path / "policy.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(kind) as error:
        policy_file.load(path)
    assert str(error.value).startswith(f"policy {str(path)!r} {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["chosn"], {}, "policy has no option 'chosn'; did you mean 'chosen'? Allowed: base, budget"),
        (["chosen"], DELETE, "policy needs the option 'chosen'"),
        (["objective"], DELETE, "policy needs the option 'objective'"),
        (["origin"], "embedded", "policy: origin must be a mapping of keys to values, got 'embedded'"),
        (["origin", "weights"], 5, "policy: origin: weights must be text, got 5"),
        (["origin", "data"], DELETE, "policy: origin needs the option 'data'"),
        (["base"], ["cdpruner"], "policy: base must be a mapping of keys to values, got ['cdpruner']"),
        (["base", "name"], DELETE, "policy: base needs the name of a pruner, got None"),
        (["objective", "positions"], "first", "policy: objective: positions is 'first'; did you mean 'first_token'?"),
        (["objective", "samples"], 0, "policy: objective: samples must be at least 1, got 0"),
        (["objective", "attention"], "update_only", "policy: chosen: depths: query has no meaning"),
        (["budget", "kind"], "watts", "policy: budget: kind is 'watts'; Allowed: average_tokens, flops, milliseconds"),
        (["budget", "value"], "1", "policy: budget: value must be a number, got '1'"),
        (["budget", "latency"], {"mlp": [1, 2]}, "policy: budget: latency needs the option 'attention'"),
        (
            ["budget", "latency"],
            {"attention": [1, 2, 3, 4], "mlp": [1]},
            "policy: budget: latency: mlp must be 2 numbers of at least 0, got [1.0]",
        ),
        (["chosen", "depths"], DELETE, "policy: chosen needs the option 'depths'"),
        (["chosen", "depths", "attention"], 1.5, "policy: chosen: depths: attention must be an integer, got 1.5"),
        (["chosen", "depths", "keep"], 0, "policy: chosen: depths: keep must be an integer of at least 1, got 0"),
        (["chosen", "depths", "layers"], 0, "policy: chosen: depths has no option 'layers'; Allowed: attention"),
        (
            ["chosen", "depths", "update_only"],
            True,
            "policy: chosen: depths has no option 'update_only'; the file says",
        ),
        (["chosen", "depths", "mlp"], 7, "goes 7 layers deep, but the LLM has 6"),
        (["chosen", "predicted"], float("nan"), "policy: chosen: predicted must be a finite number, got nan"),
        (["candidates"], {}, "policy: candidates must be a list, got {}"),
        (["candidates", 1, "cost"], None, "policy: candidates[1]: cost must be a number, got None"),
        (["curves", "layers"], "6", "policy: curves: layers must be an integer, got '6'"),
        (["curves", "mlp"], DELETE, "policy: curves needs the option 'mlp'"),
        (["curves", "mlp"], {"1": 0.5}, "policy: curves: mlp must be a list"),
        (["curves", "mlp"], [[1, 0.5, 2]], "policy: curves: mlp must be a list of pairs of an integer and a number"),
        (["curves", "mlp"], [["1", 0.5]], "policy: curves: mlp must be a list of pairs of an integer and a number"),
        (["curves", "mlp"], [[1, True]], "policy: curves: mlp must be a list of pairs of an integer and a number"),
        (["curves", "mlp"], [[1, 0.5], [1, 0.6]], "policy: curves: mlp has two points at 1"),
        (["curves", "mlp"], [[9, 0.5]], "policy: curves: mlp: a curve has a point at 9; allowed: integers from 0 to 5"),
        (["curves", "tokens"], [[9, -0.5]], "policy: curves: tokens: a curve has the divergence -0.5 at 9"),
    ],
)
def test_mistakes_in_a_file(keys, value, message, two_depths):
    raw = copy.deepcopy(policy_file.to_mapping(two_depths))
    at = raw
    for key in keys[:-1]:
        at = at[key]
    if value is DELETE:
        del at[keys[-1]]
    else:
        at[keys[-1]] = value
    with pytest.raises(ConfigError) as error:
        policy_file.from_mapping(raw)
    assert message in str(error.value)


def test_a_model_with_fewer_layers(two_depths, spec, tmp_path):
    policy_file.save(two_depths, tmp_path / "policy.yaml")
    smaller = ModelSpec(replace(spec.llm, layers=2), spec.vocabulary, spec.visual_tokens)
    with pytest.raises(ConfigError, match=r"policy '.*policy.yaml': attention=.* layers deep, but the LLM has 2"):
        policy_file.load(tmp_path / "policy.yaml", smaller)
