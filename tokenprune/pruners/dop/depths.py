"""Depth-wise operation pruning: up to which layer visual tokens take part in what, and which of that work is dead.

Paper: Fine-grained Token Allocation Via Operation Pruning for Efficient MLLMs, https://arxiv.org/abs/2507.02909. An
operation that is pruned stays pruned in all deeper layers.

What a layer writes for visual tokens is read by nobody but the keys and values of deeper layers. So nothing that is
written in the last layer in which they give keys and values, or after it, changes the output: that work is dead.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch

from tokenprune.core.errors import ConfigError
from tokenprune.core.plan import Operation, OperationPlan
from tokenprune.core.sizes import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Depths:
    """Up to where the visual tokens that enter the LLM take part in each operation; the others leave before it.

    Attributes:
        attention: they give keys and values in layers below this one (0-based), so in so many layers.
        mlp: they pass the MLP in layers below this one.
        keep: how many visual tokens enter the LLM.
        query: they ask and receive in layers below this one; None is ``attention``.
        update_only: the other reading of "attention is pruned": they give keys and values in all layers, and
            ``attention`` is how far they ask and receive. It leaves no room for ``query``.

    Raises:
        ConfigError: if a depth is negative, no token is kept, or ``query`` is given with ``update_only``.
    """

    attention: int
    mlp: int
    keep: int
    query: int | None = None
    update_only: bool = False

    def __post_init__(self) -> None:
        for name, least in {"attention": 0, "mlp": 0, "keep": 1, "query": 0}.items():
            value = getattr(self, name)
            if (name != "query" or value is not None) and (type(value) is not int or value < least):
                raise ConfigError(f"{name} must be an integer of at least {least}, got {value!r}")
        if self.update_only and self.query is not None:
            raise ConfigError("query has no meaning with update_only, where attention is the receivers' depth")

    @property
    def receivers(self) -> int:
        """Layers in which the visual tokens ask and receive."""
        return self.attention if self.query is None else self.query

    def sources(self, layers: int) -> int:
        """Layers in which the visual tokens give keys and values, in an LLM of so many layers."""
        return layers if self.update_only else self.attention

    def check(self, layers: int, total: int) -> None:
        """Refuse depths or tokens that a model does not have.

        Args:
            layers: of the LLM.
            total: visual tokens before pruning.

        Raises:
            ConfigError: if a depth exceeds the layers, or more tokens are kept than there are.
        """
        deepest = max(self.attention, self.mlp, self.receivers)
        if deepest > layers:
            raise ConfigError(f"{self} goes {deepest} layers deep, but the LLM has {layers}")
        if self.keep > total:
            raise ConfigError(f"{self} keeps {self.keep} visual tokens, but there are {total}")

    def normalised(self, layers: int) -> Depths:
        """Depths of the same output without dead work; equal to itself when normalised again.

        Args:
            layers: of the LLM.

        Raises:
            ConfigError: if a depth exceeds the layers.
        """
        self.check(layers, self.keep)
        last = max(self.sources(layers) - 1, 0)
        mlp, receivers = min(self.mlp, last), min(self.receivers, last)
        if self.update_only:
            return replace(self, mlp=mlp, attention=receivers)
        return replace(self, mlp=mlp, query=receivers)

    def plan(self, spec: ModelSpec, total: int) -> OperationPlan:
        """The plan of the depths, dead work included unless the depths are normalised.

        Its groups are those of ``OperationPlan.drop_at`` before the LLM: visual tokens that leave, and that enter.

        Args:
            spec: of the model.
            total: visual tokens before pruning.

        Raises:
            ConfigError: if the model has fewer layers or tokens.
        """
        layers = spec.llm.layers
        self.check(layers, total)
        active = torch.zeros(layers, len(Operation), 2, dtype=torch.bool, device="cpu")
        active[: self.sources(layers), Operation.ATTENTION_SOURCE, 1] = True
        active[: self.receivers, Operation.ATTENTION_RECEIVER, 1] = True
        active[: self.mlp, Operation.MLP, 1] = True
        return OperationPlan(active, (total - self.keep, self.keep))

    def __str__(self) -> str:
        given = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ", ".join(f"{name}={value}" for name, value in given if value is not None and value is not False)
