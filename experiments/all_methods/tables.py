"""The tables of this experiment: accuracy, by type of question, and paired tests, as Markdown.

python experiments/all_methods/tables.py runs/all_methods
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from tokenprune.report.significance import compare_seeds, holm

Record = dict[str, Any]
Budget = tuple[str, int]
TOKENS: list[Budget] = [("average_tokens", number) for number in (72, 48, 24, 12)]
FLOPS: list[Budget] = [("flops", 330624000), ("flops", 228510720)]
Found = dict[tuple[str, Budget | None], list[Record]]
FITTED = {"331M": 72, "229M": 48, "131M": 24, "84M": 12}  # policies of operations, by the tokens that cost as much


def lines(path: Path) -> Iterable[Record]:
    """The lines of a JSONL file."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def name_of(record: Record) -> str:
    """A row's name: the label without the seed."""
    return (
        str(record["label"]).replace(f" seed={record['seed']}", "").replace(f" seed={record['pruner'].get('seed')}", "")
    )


def by_row(folder: Path) -> Found:
    """Records of each row and budget, one for each seed."""
    found: Found = defaultdict(list)
    for record in lines(folder / "results.jsonl"):
        if record["status"] == "ok":
            name, budget = name_of(record), next(((kind, int(n)) for kind, n in record["budget"].items()), None)
            if name.startswith("dop"):
                name, budget = "dop, fitted for that cost", ("average_tokens", FITTED[name.rpartition("policy=")[2]])
            found[name, budget].append(record)
    return found


def shown(values: Sequence[float]) -> str:
    """A share in %, with the deviation over seeds."""
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{spread}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    ruler = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ruler, *rows))


def accuracies(found: Found, budgets: Sequence[Budget]) -> str:
    """Accuracy of each row at some budgets."""
    names = dict.fromkeys(name for name, budget in found if budget in budgets)
    rows = []
    for name in names:
        cells = [found.get((name, budget), []) for budget in budgets]
        rows.append([name, *(shown([r["metrics"]["accuracy"] for r in cell]) if cell else "-" for cell in cells)])
    return table(["method", *(str(number) for _, number in budgets)], rows)


def kinds(found: Found, budget: Budget) -> str:
    """Accuracy by type of question at a budget."""
    rows, head = [], list[str]()
    for (name, given), records in found.items():
        if given == budget or name == "none":
            parts = [record["metrics"]["accuracy_by_kind"] for record in records]
            head = sorted(parts[0])
            rows.append([name, *(f"{100 * fmean(part[kind] for part in parts):.1f}" for kind in head)])
    return table(["method", *head], rows)


def tests(folder: Path, found: Found, budget: Budget) -> str:
    """Each row against random before the LLM, and against CDPruner, on the same questions; p corrected by Holm."""
    rows = {name: records for (name, given), records in found.items() if given == budget}
    cells = {record["cell"] for records in rows.values() for record in records}
    right: dict[str, dict[str, float]] = defaultdict(dict)
    for line in lines(folder / "samples.jsonl"):
        if line["cell"] in cells:
            right[line["cell"]][line["sample"]] = line["correct"]
    order = sorted(next(iter(right.values())))
    answers = {n: [[right[r["cell"]][s] for s in order] for r in records] for n, records in rows.items()}
    pairs = [(name, other) for other in ("random", "cdpruner") for name in answers if name != other]
    compared = [compare_seeds(answers[name], answers[other]) for name, other in pairs]
    corrected = dict(zip(pairs, holm([each.p for each in compared]), strict=True))
    differences = {pair: 100 * each.difference for pair, each in zip(pairs, compared, strict=True)}

    def cell(pair: tuple[str, str]) -> list[str]:
        return [f"{differences[pair]:+.1f}", f"{corrected[pair]:.2g}"] if pair in differences else ["-", "-"]

    body = [[name, *cell((name, "random")), *cell((name, "cdpruner"))] for name in answers]
    return table(["method", "over random", "p", "over cdpruner", "p"], body)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="of the run")
    folder = parser.parse_args().folder
    found = by_row(folder)
    for part in (accuracies(found, TOKENS), accuracies(found, FLOPS), kinds(found, TOKENS[1])):
        print(part, end="\n\n")
    for budget in TOKENS[1:3]:
        print(tests(folder, found, budget), end="\n\n")


if __name__ == "__main__":
    main()
