"""What ``generate`` calls back."""

from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation import MaxLengthCriteria

from block_cases.base import NEW, Subject, case, same


class Seeing(LogitsProcessor, StoppingCriteria):
    """Notes which ids it is shown, and stops after so many new ones; it is both a processor and a criterion."""

    def __init__(self, stop: int) -> None:
        self.seen: list[torch.Tensor] = []
        self.stop = stop

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        self.seen.append(ids.clone())
        return scores


class Criterion(StoppingCriteria):
    def __init__(self, longest: int) -> None:
        self.longest, self.seen = longest, []

    def __call__(self, ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.seen.append(ids.clone())
        return torch.full((len(ids),), ids.shape[1] >= self.longest)


CALLBACKS = "what `generate` calls back"


@case(CALLBACKS, "stopping criteria, logits processors, `prefix_allowed_tokens_fn`: they see the caller's prompt")
def _(s: Subject) -> None:
    x = s.inputs(1, 2)
    ids, length = x["input_ids"], x["input_ids"].shape[1]
    for how in ({}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}):
        processor, criterion, rows = Seeing(0), Criterion(length + 3), []

        def allowed(row: int, tokens: torch.Tensor, rows: Any = rows) -> list[int]:
            rows.append((row, tokens.clone()))
            return [9] if len(tokens) == length else [10, 11]

        with s.prune():
            called = {"logits_processor": [processor], "stopping_criteria": [criterion]}
            out = s.model.generate(**x, **called, prefix_allowed_tokens_fn=allowed, max_new_tokens=8, **how)
        assert out.shape[1] == length + 3
        assert (out[:, length] == 9).all()
        for seen in (*processor.seen, *criterion.seen):
            same(seen[:, :length], ids.repeat_interleave(len(seen) // 2, 0))
        copies = len(processor.seen[0]) // 2
        for row, tokens in rows:
            same(tokens[:length], ids[row // (copies if "do_sample" in how else 1)])


@case(CALLBACKS, "transformers' own criteria")
def _(s: Subject) -> None:
    x = s.inputs()
    longest = x["input_ids"].shape[1] + 3
    own = [MaxLengthCriteria(max_length=longest)]
    with s.prune():
        assert s.model.generate(**x, max_new_tokens=20, stopping_criteria=own).shape[1] == longest


@case(CALLBACKS, "callbacks in lists, and functions in transformers' own processors")
def _(s: Subject) -> None:
    x, seen = s.inputs(), []
    length = x["input_ids"].shape[1]

    def allowed(row: int, ids: torch.Tensor) -> list[int]:
        seen.append(len(ids))
        return [9, 10]

    criterion = Criterion(length + 2)
    with s.prune():
        nested = {"stopping_criteria": [StoppingCriteriaList([criterion])]}
        own = PrefixConstrainedLogitsProcessor(allowed, num_beams=1)
        out = s.model.generate(**x, max_new_tokens=6, logits_processor=[own], **nested)
    assert out.shape[1] == length + 2
    assert seen == [length, length + 1]


@case(CALLBACKS, "callbacks that ask the model about another picture or text, as contrastive decoding and guidance do")
def _(s: Subject) -> None:
    s = s.own()  # Qwen's models remember something of their last prompt, which guidance reads
    x, y = s.inputs(), s.inputs(seed=7)
    text = {"input_ids": y["input_ids"][:, -9:].repeat(1, 8)[:, : 2 * x["input_ids"].shape[1]]}
    text = {name: value.masked_fill(s.family.placeholder(s.model, value), 9) for name, value in text.items()}
    bare, wanted, said = s.logits(text), s.pruned(y)[0], s.pruned(x)[1]
    found = []

    class Asking(LogitsProcessor):
        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            found.append((s.logits(y), s.logits(text), s.logits({**text, "use_cache": False})))
            return scores

    with s.prune() as trace:
        same(s.model.generate(**x, max_new_tokens=NEW, logits_processor=[Asking()]), said)
        guided = s.model.generate(**x, max_new_tokens=NEW, guidance_scale=1.5)
    assert len(found) == NEW
    for other, words, again in found:
        same(other, wanted)
        same(words, bare)
        same(again, bare)
    assert len(trace.calls) == NEW + 2
    assert guided.shape == said.shape


@case(CALLBACKS, "streamers: the caller's prompt comes first")
def _(s: Subject) -> None:
    x, put = s.inputs(), []

    class Noting:
        def put(self, value: torch.Tensor) -> None:
            put.append(value.flatten())

        def end(self) -> None:
            put.append(torch.tensor([-1]))

    with s.prune():
        out = s.model.generate(**x, max_new_tokens=NEW, streamer=Noting())
    same(put[0], x["input_ids"][0])
    same(torch.cat(put)[:-1], out[0])
