"""lmms-eval's scores of answers: of one row, and of all."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import math
import random
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tokenprune.tasks.lmms_eval.loading import plain_errors

PAIRS = (("pred_answer", "answer"), ("parsed_pred", "answer"), ("pred", "answer"), ("pred", "ground_truth"))
WORDS = ("think", "analysis")  # around what a model says before it answers


def without_reasoning(text: str) -> str:
    """An answer without blocks of reasoning; of a block whose beginning is in the prompt, all up to its end."""
    for word in WORDS:
        opened, closed = f"<{word}>", f"</{word}>"
        while opened in text and closed in text.partition(opened)[2]:
            before, _, rest = text.partition(opened)
            text = before + rest.partition(closed)[2]
        if closed in text and opened not in text:
            text = text.rpartition(closed)[2]
    return text.strip()


def filtered(task: Any, doc: Any, answer: str) -> Any:
    """An answer as lmms-eval's filters leave it."""
    instance = argparse.Namespace(resps=[answer], filtered_resps={})
    for ensemble in task._filters:
        ensemble.apply([instance], [doc])
    return next(iter(instance.filtered_resps.values()))


def result_of(task: Any, row: int, answer: str) -> dict[str, Any]:
    """What lmms-eval makes of one answer: numbers or records by metric.

    Some tasks change the row that they are given, which is read anew each time; and some draw an answer at random if
    they read none, so that draws depend on the row alone.

    Args:
        task: of lmms-eval.
        row: number of the row.
        answer: finished.
    """
    doc = task.eval_docs_no_media[row]
    before = random.getstate()
    random.seed(row)
    try:
        with quiet(), plain_errors(f"lmms-eval's score of row {row} of {task.config.task!r}"):
            answers = [filtered(task, doc, answer)]
            result: dict[str, Any] = type(task).process_results.__wrapped__(task, doc, answers)
            return result
    finally:
        random.setstate(before)


def score_of(task: Any, result: Mapping[str, Any], primary: str, modulo: Mapping[str, int]) -> float | None:
    """The score in [0, 1] that one row has by itself; None if it has none.

    Args:
        task: of lmms-eval.
        result: of the row.
        primary: metric that is asked for; if the row has it not, its first metric is.
        modulo: by field, what takes a rotated copy's number in a record to that of its question, so that the copy is
            scored as a question.
    """
    metric = primary if primary in result else next(iter(result), None)
    value = result.get(metric) if metric else None
    if isinstance(value, Mapping):
        value = {**value, **{field: int(value[field]) % each for field, each in modulo.items()}}
        said = value.get(task.config.score_key or "score")
        return _share(said) if said is not None else _alone(task, str(metric), value)
    return _share(value)


def _share(value: Any) -> float | None:
    """A number in [0, 1]; None for anything else."""
    number = _number(value)
    return number if number is not None and 0 <= number <= 1 else None


def _number(value: Any) -> float | None:
    plain = value.item() if hasattr(value, "item") else value
    return float(plain) if isinstance(plain, bool | int | float) and math.isfinite(plain) else None


def _alone(task: Any, metric: str, record: Mapping[str, Any]) -> float | None:
    """The aggregated score of a single record, if it says right or wrong; else whether answer and truth are equal."""
    function = task.aggregation().get(metric)
    if function is not None:
        with contextlib.suppress(Exception):  # some need all rows
            value = _number(aggregated(function, [record]))
            if value in (0.0, 1.0, 100.0):
                return min(value, 1.0)
    for said, truth in PAIRS:
        if said in record and truth in record:
            value = record[said][0] if isinstance(record[said], list) and record[said] else record[said]
            return float(str(value).strip().lower() == str(record[truth]).strip().lower())
    return None


def aggregated(function: Any, values: list[Any]) -> Any:
    """What an aggregation of lmms-eval makes of the values of a metric; files that it writes are thrown away."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), quiet():
        if "args" in inspect.signature(function).parameters:
            return function(values, args=argparse.Namespace(output_path=folder))
        return function(values)


def aggregate(task: Any, answers: Iterable[tuple[int, str]]) -> dict[str, float]:
    """lmms-eval's metrics of all answers, those that are finite numbers.

    Args:
        task: of lmms-eval, made for this call alone: some of its aggregations add up in variables of a module.
        answers: numbers of rows and finished answers, in the order of the rows.
    """
    values: dict[str, list[Any]] = {}
    for row, answer in answers:
        for metric, value in result_of(task, row, answer).items():
            values.setdefault(metric, []).append(value)
    found = {}
    for metric, function in task.aggregation().items():
        if metric in values and metric != "submission":
            with plain_errors(f"lmms-eval's {metric} of {task.config.task!r}"):
                number = _number(aggregated(function, values[metric]))
            if number is not None:
                found[metric] = number
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing that lmms-eval prints inside is seen."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
