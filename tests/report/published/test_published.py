"""What papers print: each number has its shape and source, names what exists, and is what the paper prints."""

import pytest

from tokenprune.core.errors import ConfigError
from tokenprune.core.options import construct
from tokenprune.costs.model_card import card_names, load_card
from tokenprune.pruners.base import PRUNERS
from tokenprune.report import published as module
from tokenprune.report.published import Published, find, published
from tokenprune.sweeps.protocols import PROTOCOLS
from tokenprune.tasks.benchmarks import BENCHMARKS, REFUSED

ALL = published()
# Tasks of lmms-eval that are not in our table of checked benchmarks.
OTHERS = {"mmbench_cn_dev", "mvbench", "videomme_w_subtitle", "hallusion_bench_image"}
LLAVA_METRICS = {"gqa_accuracy_llava", "scienceqa_accuracy_llava", "pope_f1_llava_mean_of_categories"}
MME_METRICS = {"mme_perception_llava", "mme_cognition_llava", "mme_perception_score", "mme_total"}


def test_each_names_what_exists():
    assert len(ALL) > 1000
    for entry in ALL:
        assert entry.model in card_names()
        assert entry.checkpoint == load_card(entry.model).hub
        assert entry.column.task in {*BENCHMARKS, *REFUSED, *OTHERS}
        assert entry.protocol is None or entry.protocol in PROTOCOLS
        assert set(entry.column.metrics) <= LLAVA_METRICS | MME_METRICS
        if entry.method is not None:
            pruner = PRUNERS.entry(entry.method).target
            construct(pruner, entry.options, entry.name)  # knows the options


def test_each_has_a_source_and_a_value_that_can_be():
    for entry in ALL:
        assert entry.source.strip()
        assert entry.paper is None or (len(entry.paper) == 10 and entry.paper[4] == ".")
        assert 0 < entry.value <= entry.column.top
        assert (entry.method == "none") == (not entry.budget)
        assert entry.origin in ("own", "rerun") or not entry.verified


def test_a_table_does_not_print_a_number_twice():
    keys = [(e.model, e.protocol, e.column, e.name, str(e.budget), e.paper, e.source) for e in ALL]
    assert len(set(keys)) == len(keys)


# Copied from the tables by hand, not by the way that the files were made.
BY_HAND = [
    ("llava-1.5-7b", "pope", "cdpruner", "64", "own", 87.5),
    ("llava-1.5-7b", "textvqa_val", "fastv", "128", "rerun", 56.4),
    ("llava-1.5-7b", "mme", "divprune", "32", "rerun", 1284.9),
    ("llava-1.5-7b", "gqa", "none", None, "copied", 61.9),
    ("llava-1.5-7b", "mmvet", "vispruner", "32", "own", 28.8),
    ("llava-1.5-7b", "vizwiz_vqa_val", "fastervlm", "144", "own", 51.97),
    ("llava-1.5-7b", "mme", "hiprune", "64", "own", 1646),
    ("llava-1.5-7b", "scienceqa_img", "holov", "128", "copied", 69.8),
    ("llava-next-7b", "scienceqa_img", "trim", "160", "rerun", 65.5),
    ("llava-next-7b", "mmbench_cn_dev", "visionzip", "640", "rerun", 58.1),
    ("llava-next-13b", "pope", "pdrop", "320", "rerun", 74.6),
    ("qwen2.5-vl-7b", "ocrbench", "cdpruner", "128", "own", 632),
    ("qwen2.5-vl-7b", "hallusion_bench_image", "divprune", "256", "rerun", 36.4),
    ("llava-onevision-7b", "longvideobench_val_v", "holitom", "0.15", "own", 56.4),
    ("llava-onevision-7b", "videomme", "fastvid", "0.1", "own", 57.33),
    ("qwen3-vl-8b", "mlvu_dev", "vidcom2", "0.25", "own", 64.0),
]


@pytest.mark.parametrize(("model", "task", "method", "budget", "origin", "value"), BY_HAND)
def test_values(model, task, method, budget, origin, value):
    found = find(model=model, task=task, method=method, budget=budget)
    assert value in [entry.value for entry in found if entry.origin == origin]


def test_two_tables_of_the_unpruned_model_by_hand():
    """The first and last line of CDPruner's Table 1: VQAv2 GQA VizWiz SQA TextVQA POPE MME MMB MMB-CN MM-Vet."""
    table = [e for e in ALL if e.paper == "2506.10967" and e.model == "llava-1.5-7b"]
    unpruned = [e.value for e in table if e.method == "none"]
    assert unpruned == [78.5, 61.9, 50.1, 69.5, 58.2, 85.9, 1506.5, 64.7, 58.1, 31.3]
    last = [e.value for e in table if e.method == "cdpruner" and e.budget == {"keep_tokens": 32}]
    assert last == [73.6, 57.0, 53.1, 69.5, 53.2, 87.9, 1373.0, 59.6, 49.6, 27.8]
    assert [e.column.task for e in table if not e.column.same_rows][:2] == ["vqav2_val", "vizwiz_vqa_val"]


def test_what_was_passed_on_is_not_verified():
    doubtful = {e.origin for e in ALL if not e.verified}
    assert {"copied", "second hand"} <= doubtful
    assert all(not e.verified for e in ALL if e.origin in ("copied", "second hand"))


def test_find_takes_names_of_papers_and_budgets():
    assert find(method="PDrop", model="llava-1.5-7b") == find(method="pdrop", model="llava-1.5-7b")
    assert {e.name for e in find(method="pyramiddrop")} == {"PDrop"}
    assert find(budget="keep_ratio=0.25") == find(budget="0.25")
    assert find() == list(ALL)
    assert find(model="qwen3-vl-8b", task="pope") == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"model": "llava-1.5"}, "no published numbers of model 'llava-1.5'; did you mean 'llava-1.5-7b'"),
        ({"task": "popee"}, "no published numbers of task 'popee'; did you mean 'pope'"),
        ({"method": "cdprunr"}, "no published numbers of method 'cdprunr'; did you mean 'cdpruner'"),
        ({"budget": "keep_tokens=65"}, "of budget 'keep_tokens=65'; did you mean 'keep_tokens=64'"),
    ],
)
def test_unknown_names(asked, said):
    with pytest.raises(ConfigError, match=said):
        find(**asked)


TABLE = """model: llava-1.5-7b
checkpoint: x
protocol: {protocol}
paper: null
source: here
origin: own
columns: [{column}]
rows:
  - {{name: A, keep_tokens: 64, values: [{values}]}}
"""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protocol": "llava_15"}, "no protocol 'llava_15'; did you mean 'llava15'"),
        ({"column": "popes"}, "t.yaml: there is no column 'popes'; did you mean 'pope'"),
        ({"values": "1, 2"}, "t.yaml: 'A' has 2 values in 1 columns"),
        ({"values": "many"}, "t.yaml: value must be a number, got 'many'"),
    ],
)
def test_a_file_that_is_wrong(tmp_path, monkeypatch, changes, said):
    (tmp_path / "columns.yaml").write_text("pope: {task: pope, printed: POPE}\n")
    (tmp_path / "tables").mkdir()
    file = tmp_path / "tables/t.yaml"
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    right = {"protocol": "llava15", "column": "pope", "values": "87.5"}
    file.write_text(TABLE.format(**right))
    assert [entry.value for entry in published()] == [87.5]
    file.write_text(TABLE.format(**right | changes))
    with pytest.raises(ConfigError, match=said):
        published()


def test_a_budget_is_of_one_kind():
    with pytest.raises(ConfigError, match="a published budget is one of keep_tokens, keep_ratio"):
        Published(**{**vars(ALL[0]), "budget": {"tokens": 3}})
