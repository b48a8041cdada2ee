"""Gradients, and training."""

import contextlib
import tempfile
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import tokenprune as tp
from block_cases.base import KEEP, Subject, case
from tokenprune.engine.decoder.decoder_checks import HOOKS_RUN_ONCE

GRADIENTS = "gradients"


@case(GRADIENTS, "gradients in eval mode and in training, of pixels too")
def _(s: Subject) -> None:
    s, x = s.own(), s.inputs()
    name = "pixel_values" if x.get("pixel_values") is not None else "pixel_values_videos"
    for mode in (s.model.eval(), s.model.train()):
        found = []
        for keep in (None, {"keep_ratio": 1.0}, {"keep_tokens": KEEP}):
            pixels = x[name].float().clone().requires_grad_()
            with s.prune(**keep) if keep else contextlib.nullcontext():
                mode(**{**x, name: pixels}, labels=s.labels(x), use_cache=False).loss.backward()
            found.append(pixels.grad)
        torch.testing.assert_close(found[1], found[0])
        assert found[2].abs().sum() > 0
        assert not torch.equal(found[2], found[0])
    with s.prune(), torch.no_grad():
        assert not s.model(**x).logits.requires_grad


OLD = None if HOOKS_RUN_ONCE else "gradient checkpointing"


@case(GRADIENTS, "gradient checkpointing, reentrant or not (inside the LLM: transformers >= 5.23)", inside=OLD)
def _(s: Subject) -> None:
    s, x = s.own(), s.inputs()
    s.model.train()

    def gradient() -> torch.Tensor:
        s.model.zero_grad()
        with s.prune():
            s.model(**x, labels=s.labels(x), use_cache=False).loss.backward()
        return s.model.get_decoder().layers[0].self_attn.q_proj.weight.grad.clone()

    s.model.enable_input_require_grads()
    wanted = gradient()
    for reentrant in (False, True):
        s.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.testing.assert_close(gradient(), wanted)


WHOLE = "a model that is checkpointed as a whole"


@case(GRADIENTS, "`checkpoint(model, ...)` around the whole model; `tp.attach` works", before=WHOLE, inside=WHOLE)
def _(s: Subject) -> None:
    s, x = s.own(), s.inputs()

    def gradient(way: Any) -> torch.Tensor:
        s.model.zero_grad()
        embeds = s.model.get_input_embeddings().weight

        def loss(_: torch.Tensor) -> torch.Tensor:
            return s.model(**x, labels=s.labels(x), use_cache=False).loss

        (loss(embeds) if way is None else checkpoint(loss, embeds, use_reentrant=way)).backward()
        return s.model.get_decoder().layers[0].self_attn.q_proj.weight.grad.clone()

    handle = s.attach()
    wanted = gradient(None)
    for reentrant in (False, True):
        torch.testing.assert_close(gradient(reentrant), wanted)
    handle.remove()
    with s.prune():
        gradient(True)


@case(
    GRADIENTS,
    "gradient checkpointing with operation pruning (`dop`)",
    inside="gradient checkpointing runs layers again",
)
def _(s: Subject) -> None:
    s, x = s.own(), s.inputs()
    s.model.train()
    s.model.gradient_checkpointing_enable({"use_reentrant": False})
    base = {"pruner": "uniform", "positions": "original"}
    plan = {"pruner": "dop", "base": "uniform", "attention_depth": 2, "mlp_depth": 2} if s.place == "inside" else base
    with tp.prune(s.model, s.processor, **plan, keep_tokens=KEEP):
        s.model(**x, labels=s.labels(x), use_cache=False).loss.backward()


@case(GRADIENTS, "`Trainer`, also with `torch_compile=True`, by `tp.attach`", some=True)
def _(s: Subject) -> None:
    from transformers import Trainer, TrainingArguments

    s, x = s.own(), s.inputs()
    x = {**x, "labels": s.labels(x)}
    with s.prune():
        wanted = s.model.train()(**x, use_cache=False).loss.item()
    for compiled in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        with tempfile.TemporaryDirectory() as folder:
            how = {
                "use_cpu": True,
                "report_to": "none",
                "save_strategy": "no",
                "remove_unused_columns": False,
                **compiled,
            }
            options = TrainingArguments(folder, max_steps=1, learning_rate=0.0, disable_tqdm=True, **how)
            trainer = Trainer(s.model, options, train_dataset=[x], data_collator=lambda rows: rows[0])
            handle = s.attach()
            loss = trainer.train().training_loss
            handle.remove()
        assert len(handle.trace.calls) == 1
        assert loss == pytest.approx(wanted, abs=1e-5)
