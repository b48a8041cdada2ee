"""``tokenprune published``: readable in 80 columns, complete as JSON, one sentence for what there is not."""

import json

import pytest
from typer.testing import CliRunner

from tokenprune.cli.main import app
from tokenprune.report.published import published

RUNNER = CliRunner(env={"COLUMNS": "80"})


def call(*arguments, status=0):
    done = RUNNER.invoke(app, ["published", *arguments])
    assert done.exit_code == status, done.output
    return done


def test_a_table_in_80_columns():
    lines = call("--model", "llava-1.5-7b", "--task", "pope").output.splitlines()
    assert max(map(len, lines)) <= 80
    shown = [line.split() for line in lines]
    assert ["CDPruner", "POPE", "F1", "64", "87.5", "authors", "2"] in shown
    assert ["FastV", "POPE", "F1", "192", "64.8?", "copied", "6"] in shown
    text = "\n".join(lines)
    assert "2: arXiv 2506.10967, Table 1" in text
    assert "?: passed on by others" in text


def test_all_of_it_fits_too():
    output = call().output
    assert max(map(len, output.splitlines())) <= 80
    assert "llava-onevision-7b" in output


def test_json():
    found = json.loads(call("--json", "--method", "divprune", "--budget", "32").output)
    assert {each["model"] for each in found} == {"llava-1.5-7b"}
    pope = next(each for each in found if each["task"] == "pope")
    assert pope["value"] == 81.5
    assert pope["budget"] == {"keep_tokens": 32}
    assert (pope["origin"], pope["paper"], pope["protocol"]) == ("rerun", "2506.10967", "llava15")
    assert pope["verified"] is True
    assert len(json.loads(call("--json").output)) == len(published())


def test_nothing_found():
    assert "There is no such number" in call("--model", "qwen3-vl-8b", "--task", "pope").output
    assert json.loads(call("--model", "qwen3-vl-8b", "--task", "pope", "--json").output) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "llava"], "model 'llava'"),
        (["--task", "popee"], "did you mean 'pope'?"),
        (["--method", "cdprunr"], "did you mean 'cdpruner'?"),
        (["--budget", "63"], "budget '63'"),
    ],
)
def test_one_sentence(arguments, said):
    done = call(*arguments, status=2)
    assert done.stderr.startswith("tokenprune: there are no published numbers of")
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
