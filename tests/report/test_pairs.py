"""Which pairs a report tests, and what it says of them."""

import dataclasses

import pytest
from report_runs import leave, rbf, record, usual

from tokenprune.report.comparison import Choice, outcomes
from tokenprune.report.document import Items, Paragraph, Table
from tokenprune.report.pairs import MANY, choose_pairs, section_pairs
from tokenprune.report.rows import sections_of
from tokenprune.report.significance import compare_seeds, holm


def sectioned(folder):
    (section,) = sections_of(folder.records(), {"pruner": "cdpruner"})
    cells = {record.cell for row in section.done for record in row.records}
    return section, outcomes(folder, cells)


def test_all_pairs_of_equal_cost(folder):
    section, found = sectioned(folder)
    pairs, blocks = section_pairs(folder, section, found, Choice())
    assert [(p.first.label, p.second.label, p.first.number("average_tokens")) for p in pairs] == [
        ("random", "cdpruner kernel=rbf", 48),
        ("random", "cdpruner kernel=rbf", 16),
    ]
    assert "2 comparisons on the same questions, FLOPs within 2 % of each other: all pairs. A row of several" in (
        next(block.text for block in blocks if isinstance(block, Paragraph))
    )
    for pair in pairs:
        lines = [
            [[found[record.cell][sample] for sample in sorted(found[record.cell])] for record in row.records]
            for row in (pair.first, pair.second)
        ]
        assert (len(lines[0]), len(lines[1])) == (3, 1)
        assert pair.test == compare_seeds(*lines)
    assert [pair.holm for pair in pairs] == holm([pair.test.p for pair in pairs])
    (table,) = (block for block in blocks if isinstance(block, Table))
    assert table.rows[0][:4] == ["random @ 48", "cdpruner kernel=rbf @ 48", "70.0", "90.0"]


def test_unequal_cost_is_not_compared(tmp_path, samples):
    dear = rbf(48, 0.9, llm_prefill_flops=4e6 * 48 * 1.05)
    folder = leave(tmp_path, [*usual()[:4], dear], samples)
    assert section_pairs(folder, *sectioned(folder), Choice()) == ([], [])


def test_of_many_pairs_those_with_random_and_the_studied_one():
    others = [record(f"dart layer={n}", 48, 0.5, pruner={"name": "dart", "layer": n}) for n in range(MANY)]
    (section,) = sections_of([*usual(), *others], {"baselines": ["random", "dart"], "pruner": "cdpruner"})
    pairs, said = choose_pairs(section, Choice())
    assert all({"random", "cdpruner kernel=rbf"} & {row.label for row in pair} for pair in pairs)
    assert len(pairs) == 2 * MANY + 2
    total = (MANY + 2) * (MANY + 1) // 2 + 1
    assert (
        said
        == f"of {total} pairs those with random or cdpruner kernel=rbf; the command tokenprune compare tests others"
    )


def test_answers_that_are_missing_are_told(tmp_path):
    folder = leave(tmp_path, usual())
    pairs, blocks = section_pairs(folder, *sectioned(folder), Choice())
    assert pairs == []
    assert "Not tested: samples.jsonl holds 0 of 4 answers of 'random'" in blocks[1].text


def test_scores_in_between_are_told(folder, samples):
    line = {"cell": usual()[7].cell, "sample": samples[0].id, "correct": 0.5}
    folder.samples.append(line)
    blocks = section_pairs(folder, *sectioned(folder), Choice())[1]
    (items,) = (block for block in blocks if isinstance(block, Items))
    assert "signs of the differences flipped" in dict(items.pairs)["p"]


def test_no_pruning_is_no_partner(tmp_path, samples):
    free = dataclasses.replace(rbf(144, 0.9), cell="free")
    folder = leave(tmp_path, [usual()[0], free], samples)
    assert section_pairs(folder, *sectioned(folder), Choice()) == ([], [])


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_seeds_are_explained_if_there_are_several(tmp_path, samples, seeds):
    folder = leave(tmp_path, [*usual()[: 1 + seeds], rbf(48, 0.9)], samples)
    text = section_pairs(folder, *sectioned(folder), Choice())[1][1].text
    assert ("first seed of each" in text) == (seeds > 1)
