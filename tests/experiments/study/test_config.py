"""The configuration of a study: what is read, and what is refused."""

import pytest
import yaml
from study.config import load_study_config

from tokenprune.core.errors import BudgetError, ConfigError
from tokenprune.sweeps.config import Part

YAML = """
validation: {name: scenes, split: validation, num_samples: 12}
test: scenes
bases:
  - {pruner: {name: cdpruner, sign: 1}, tokens: [12, 144]}
  - {pruner: random, tokens: 12}
budgets: 24
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "study.yaml").write_text(YAML)
    return tmp_path / "study.yaml"


def test_what_is_read(path):
    config = load_study_config(path, ["greedy=[12]", "samples=5"])
    assert [grid.pruner for grid in config.bases] == [Part("cdpruner", {"sign": 1}), Part("random")]
    assert [grid.tokens for grid in config.bases] == [(12, 144), (12,)]
    assert (config.budgets, config.greedy, config.samples) == ((24,), (12,), 5)
    assert config.test == Part("scenes")


def test_a_mapping_is_what_one_would_write(path):
    config = load_study_config(path)
    written = config.to_mapping()
    assert written["bases"][1] == {"pruner": {"name": "random"}, "tokens": [12]}
    (path.parent / "again.yaml").write_text(yaml.safe_dump(written))
    assert load_study_config(path.parent / "again.yaml") == config


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("sample=3", ConfigError, "no option 'sample'; did you mean 'samples'"),
        ("samples=0", ConfigError, "samples must be at least 1, got 0"),
        ("batch_size=0", ConfigError, "batch_size must be at least 1"),
        ("samples=many", ConfigError, "samples"),
        ("greedy=[0]", BudgetError, "keep_tokens"),
        ("bases=[]", ConfigError, "bases must be different pruners, at least one, got none"),
        ("bases=[random]", ConfigError, r"bases\[0\] must be a mapping of pruner and tokens"),
        ("bases=[{pruner: random}]", ConfigError, r"bases\[0\] needs the option 'tokens'"),
        ("bases=[{pruner: random, tokens: []}]", ConfigError, "tokens is an empty list"),
        ("bases=[{pruner: random, tokens: [0]}]", BudgetError, "keep_tokens"),
        ("bases=[{pruner: random, tokens: 1},{pruner: random, tokens: 2}]", ConfigError, "must be different pruners"),
        ("budgets=[]", ConfigError, "budgets is an empty list"),
        ("test=3", ConfigError, "test must be a mapping"),
    ],
)
def test_what_is_refused(path, override, error, message):
    with pytest.raises(error, match=message):
        load_study_config(path, [override])
