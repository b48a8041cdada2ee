"""Run the later layers of a forward again, from where a plan of operations begins to leave something out.

Up to there the layers do what they did without pruning, so their hidden states are those of one unpruned forward. To
know what many plans do to the same prompts costs that forward and, for each plan, the layers that it changes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.core.errors import ModelError
from tokenprune.core.plan import Operations
from tokenprune.engine.decoder.deepstack import LEVELS, PLACES
from tokenprune.engine.decoder.hooks import InsideLLM
from tokenprune.engine.decoder.inside_plan import InsidePlan, PromptTokens

Arguments = dict[str, Any]


class Replay:
    """An unpruned forward of a batch, with the arguments of each decoder layer.

    Args:
        model: a multimodal LLM.
        inputs: its keyword arguments.
        prompt: the same, as the LLM sees it.
        last: how many positions at the end of each row are read.

    Attributes:
        logits: (B, ``last``, vocabulary) of the unpruned model.

    Raises:
        ModelError: if more lies between the last layer and the logits than is known.
    """

    def __init__(self, model: Any, inputs: Mapping[str, Any], prompt: PromptTokens, last: int) -> None:
        self.model, self.prompt, self.last = model, prompt, last
        self._layers: dict[int, Arguments] = {}
        self._whole: Arguments = {}
        decoder = model.get_decoder()
        with ExitStack() as stack, torch.no_grad():
            hooks = [decoder.register_forward_pre_hook(self._note, with_kwargs=True)]
            hooks.append(decoder.register_forward_hook(self._note_end))
            for index, layer in enumerate(decoder.layers):
                noting = functools.partial(self._note_layer, index)
                hooks.append(layer.register_forward_pre_hook(noting, with_kwargs=True))
            for hook in hooks:
                stack.callback(hook.remove)
            self.logits: Tensor = model(**inputs, use_cache=False, logits_to_keep=last).logits
            self._cap = self._find_cap()

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> None:
        self._whole = {name: kwargs.get(name) for name in ("inputs_embeds", "attention_mask", PLACES, LEVELS)}

    def _note_layer(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> None:
        self._layers[index] = {"hidden_states": args[0], **kwargs} if args else dict(kwargs)

    def _note_end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._normed: Tensor = output.last_hidden_state[:, -self.last :]

    def _find_cap(self) -> float | None:
        """Whether the model caps its logits, which its config does not say: multimodal models may leave it out."""
        for cap in (None, getattr(self.model.get_decoder().config, "final_logit_softcapping", None)):
            if torch.allclose(self._logits(self._normed, cap), self.logits, rtol=1e-3, atol=1e-3):
                return cap
        name = type(self.model).__name__
        raise ModelError(
            f"{name} makes its logits in a way of its own, so its layers cannot be run again by themselves"
        )

    def _logits(self, normed: Tensor, cap: float | None) -> Tensor:
        logits: Tensor = self.model.get_output_embeddings()(normed).to(self.logits.device)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    @torch.no_grad()
    def under(self, operations: Operations) -> Tensor:
        """Logits (B, ``last``, vocabulary) under a plan; only layers from the first that it changes on are run."""
        partial = (~operations.active.all(2).all(1)).nonzero().flatten().tolist()
        if not partial:
            return self.logits
        decoder, plan = self.model.get_decoder(), InsidePlan((), self.prompt, operations.active)
        with InsideLLM(self.model, plan).running(self._whole):
            hidden = self._layers[partial[0]]["hidden_states"]
            for index in range(partial[0], len(decoder.layers)):
                arguments = {**self._layers[index], "hidden_states": hidden}
                output = decoder.layers[index](arguments.pop("hidden_states"), **arguments)
                hidden = output[0] if isinstance(output, tuple) else output
        return self._logits(decoder.norm(hidden[:, -self.last :]), self._cap)
