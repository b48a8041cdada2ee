"""Tables of a report, and that of the terminal."""

import dataclasses

from report_runs import random, rbf, record, usual
from rich.console import Console

from tokenprune.report.comparison import Choice
from tokenprune.report.document import Table
from tokenprune.report.results import console_table, kinds, notes, results, retention
from tokenprune.report.rows import sections_of


def text_of(records, width=80):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(console_table(records))
    return console.export_text()


def tables(blocks):
    return [block for block in blocks if isinstance(block, Table)]


def section_of(records):
    (section,) = sections_of(records, {})
    return section


def test_console_table_fits_and_says_it_all():
    text = text_of([each for each in usual() if each.seed == 0])
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert ["none", "144/144", "95.0±2.0", "100.0", "100.0", "576M", "1.00x", "1.18MB"] in lines
    assert ["random", "16/144", "40.0±2.0", "42.1", "11.1", "64M", "0.11x", "131kB"] in lines
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_seeds_are_one_row_with_their_mean_and_spread():
    text = text_of(usual())
    lines = [line.split() for line in text.splitlines() if line.strip()]
    assert ["random", "48/144", "70.0±2.0", "3", "±10.0", "73.7", "33.3", "192M", "0.33x"] in lines
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text


def test_console_table_keeps_the_order_of_the_records_and_says_which_model():
    records = [rbf(48, 0.9), rbf(48, 0.8, model="llava"), record("[dim]x", 48, 0.5)]
    text = text_of(records, width=120)
    assert text.index("(embedded, scenes)") < text.index("(llava, scenes)") < text.index("[dim]x")


def test_a_failed_cell_is_shown_as_such():
    failed = dataclasses.replace(rbf(48, 0.9), status="failed", metrics={}, error="no")
    assert "keep_tokens=48 failed" in " ".join(text_of([failed], width=120).split())


def test_main_table():
    (table,) = tables(results(section_of(usual())))
    assert table.header[:4] == ["pruner", "visual tokens", "accuracy %", "seeds sd"]
    assert ["random", "48/144", "70.0±2.0", "3 ±10.0", "73.7", "33.3", "192M", "0.33x", "393kB"] in table.rows
    (table,) = tables(results(section_of([rbf(48, 0.9)])))
    assert "seeds sd" not in table.header


def test_retention_by_budget():
    (table,) = tables(retention(section_of(usual()), Choice()))
    assert table.header == ["pruner", "keep_tokens=48", "keep_tokens=16"]
    assert table.rows == [["random", "73.7 ± 10.5", "52.6 ± 10.5"], ["cdpruner kernel=rbf", "94.7", "75.8"]]


def test_retention_of_many_budgets_leaves_out_those_of_one_pruner():
    policies = [record(f"dop policy={n}", n, 0.5, pruner={"name": "dop", "policy": n}) for n in range(20, 30)]
    blocks = retention(section_of([*usual(), *policies]), Choice())
    (table,) = tables(blocks)
    assert table.header == ["pruner", "keep_tokens=48", "keep_tokens=16"]
    assert blocks[-1].text == "10 budgets that one pruner alone has are left out."
    (few,) = tables(retention(section_of([*usual(), *policies[:3]]), Choice()))
    assert few.header[1:4] == ["keep_tokens=48", "keep_tokens=22", "keep_tokens=21"]
    assert ["dop policy=20", "-", "-", "-", "52.6", "-"] in few.rows


def test_retention_of_nothing_pruned():
    assert retention(section_of([record("none", 144, 0.95)]), Choice()) == []


def test_kinds():
    (table,) = tables(kinds(section_of(usual())))
    assert table.header == ["pruner", "visual tokens", "color", "count"]
    assert ["random", "48", "70.0 ± 10.0", "35.0 ± 5.0"] in table.rows
    assert ["cdpruner kernel=rbf", "16", "72.0", "36.0"] in table.rows
    assert kinds(section_of([record("random", 48, 0.5, accuracy_by_kind={})])) == []


def test_notes_of_records():
    noted = dataclasses.replace(random(48, 0.7, 1), notes=["memory ran out."])
    assert notes(section_of([noted]))[1].pairs == [("random seed=1 keep_tokens=48", "memory ran out")]
    assert notes(section_of(usual())) == []


def test_retention_of_unequal_cost_is_not_shown_unless_asked():
    dear = rbf(48, 0.9, llm_prefill_flops=4e6 * 48 * 1.03)
    section = section_of([random(48, 0.5, 0), dear])
    blocks = retention(section, Choice())
    assert tables(blocks)[0].rows[1] == ["cdpruner kernel=rbf", "unequal"]
    assert "more than 2 % from those of random" in blocks[-1].text
    blocks = retention(section, Choice(within=0.03))
    assert tables(blocks)[0].rows[1] == ["cdpruner kernel=rbf", "94.7"]
    assert blocks[-1] is tables(blocks)[0]
