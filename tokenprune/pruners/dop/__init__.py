"""DOP: which layers compute attention and MLP for the visual tokens at all (depth-wise operation pruning).

Paper: https://arxiv.org/abs/2507.02909
Code: none. The repository of its first version (GSOP, another method) has no licence; nothing of it is used.
Differs: the paper's body was not available. These choices are inferred from its abstract, its public reviews and the
    operations that GSOP published:
    - ``attention``: pruning it takes the visual tokens' queries, keys and values (``remove``), or their queries and
      outputs alone, so that text goes on reading them (``update_only``).
    - One group of visual tokens, those that ``base`` keeps; several, by ``shares`` of its ranking, are an extension.
    - ``query_depth`` apart from the keys' and values' is an extension to which GSOP's published search result points.
    - Positions are the prompt's; nothing is renumbered where visual tokens leave.
    - Work that nothing reads is left out: MLP and queries of the last layer in which visual tokens give keys and
      values, and of all after it.
    - Layer 0 always takes their keys and values: the length of its cache is what the prompt's length is read off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from tokenprune.core.budget import Budget
from tokenprune.core.errors import ConfigError
from tokenprune.core.plan import OperationPlan, Operations
from tokenprune.core.sizes import ModelSpec
from tokenprune.core.stages import PRE_LLM
from tokenprune.core.steps import Step, scoring_layers
from tokenprune.pruners.base import check_choice, register_pruner
from tokenprune.pruners.dop.depths import Depths
from tokenprune.pruners.dop.policy_file import load
from tokenprune.pruners.member import Given, Wrapper, complete

Attention = Literal["remove", "update_only"]
ATTENTION: tuple[Attention, Attention] = get_args(Attention)
Depth = int | tuple[int, ...] | None


@register_pruner("dop", paper="https://arxiv.org/abs/2507.02909", idea="operations")
@dataclass(frozen=True, kw_only=True)
class DOP(Wrapper):
    """Keeps what another pruner keeps, and runs attention and MLP for it in the first layers alone.

    Attributes:
        attention_depth: visual tokens take part in the attention of so many layers; None: of all.
        mlp_depth: visual tokens pass the MLP of so many layers; None: of all.
        query_depth: visual tokens ask and receive in so many layers, less than ``attention_depth``; None: in as many.
        attention: what a pruned attention leaves out, see the head of this file.
        shares: of several groups of visual tokens in the order in which ``base`` picked them; each depth is then a
            list, or one number for all.
        keep_tokens: visual tokens that enter the LLM; None leaves it to the budget.
        policy: file that ``tokenprune fit-policy`` wrote; it says all of the above but ``shares``.
    """

    attention_depth: Depth = None
    mlp_depth: Depth = None
    query_depth: Depth = None
    attention: Attention = "remove"
    shares: tuple[float, ...] = (1.0,)
    keep_tokens: int | None = None
    policy: str | None = None

    def __post_init__(self) -> None:
        if self.policy is not None:
            fitted, default = load(self.policy), DOP()
            for name, value in {"base": complete(fitted.base), **_options(fitted.depths)}.items():
                given = complete(self.base) if name == "base" else getattr(self, name)
                if given not in (value, getattr(default, name)):
                    raise ConfigError(f"option {name!r} is {given!r}, but policy {self.policy!r} says {value!r}")
                object.__setattr__(self, name, value)
        super().__post_init__()
        check_choice("attention", self.attention, get_args(Attention))
        if self.keep_tokens is not None:
            Budget(keep_tokens=self.keep_tokens)  # refuses impossible numbers
        everything = torch.ones(1, 3, len(self.shares), dtype=torch.bool, device="cpu")
        Operations(everything, self.shares)  # refuses impossible shares
        for option in ("attention_depth", "mlp_depth", "query_depth"):
            value, least = getattr(self, option), int(option == "attention_depth" and self.attention == "remove")
            depths = value if isinstance(value, tuple) else (value,) * len(self.shares)
            if len(depths) != len(self.shares) or any(depth is not None and depth < least for depth in depths):
                raise ConfigError(f"option {option!r} is {value}; allowed: {least} or more, one for all shares or each")

    @classmethod
    def of(cls, base: Given, depths: Depths) -> DOP:
        """The pruner that runs ``base`` with given depths and number of tokens."""
        return cls(base=base, **_options(depths))

    def shown(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a table says of the pruner: of a policy its base and the name of its file, without folders."""
        return options if self.policy is None else {"base": self.base, **options, "policy": Path(self.policy).stem}

    @property
    def budget(self) -> Budget | None:
        """The budget of ``keep_tokens``, or of the base."""
        return super().budget if self.keep_tokens is None else Budget(keep_tokens=self.keep_tokens)

    def steps(self, spec: ModelSpec) -> tuple[Step, ...]:
        """Steps of the base, which must not read attention that the depths leave out.

        Raises:
            ConfigError: if the model has no such layer, or the base reads attention that is pruned.
        """
        steps, operations = self.member[0].steps(spec), self.operations(spec)
        for step in steps:
            layer = (step.stage.layer or 0) - ("own" not in scoring_layers(step.selector.requires))
            if operations and step.stage != PRE_LLM and not bool(operations.active[: layer + 1, :2].all()):
                name = type(step.selector).__name__
                raise ConfigError(f"{name} reads the attention of layer {layer}, which is pruned; give larger depths")
        if len(self.shares) > 1 and [step.stage for step in steps] != [PRE_LLM]:
            raise ConfigError("several 'shares' need a base that selects before the LLM alone: they are by its ranking")
        return steps

    def operations(self, spec: ModelSpec) -> Operations | None:
        """Operations that the depths leave, without dead work; None if no depth is given."""
        if self.attention_depth is None and self.mlp_depth is None and self.query_depth is None:
            return None
        groups = [self._depths(spec, group).plan(spec, 1).active[..., 1] for group in range(len(self.shares))]
        return Operations(torch.stack(groups, -1), self.shares)

    def _depths(self, spec: ModelSpec, group: int) -> Depths:
        layers = spec.llm.layers

        def of(value: Depth) -> int | None:
            return value[group] if isinstance(value, tuple) else value

        full = Depths(attention=layers, mlp=layers, keep=1, update_only=self.attention == "update_only")
        given = {"attention": self.attention_depth, "mlp": self.mlp_depth, "query": self.query_depth}
        changed = {name: depth for name, value in given.items() if (depth := of(value)) is not None}
        return replace(full, **changed).normalised(layers)  # type: ignore[arg-type]

    def plan(self, spec: ModelSpec, alive: Sequence[int], total: int) -> OperationPlan:
        """The plan of the base, less the operations that the depths leave out."""
        base, operations = self.member[0].plan(spec, alive, total), self.operations(spec)
        if operations is None:
            return base
        if len(self.shares) == 1:
            return OperationPlan(base.active & operations.active, base.group_sizes, base.cached)
        sizes = operations.sizes(alive[0])
        gone = torch.zeros(spec.llm.layers, 3, 1, dtype=torch.bool, device="cpu")
        return OperationPlan(torch.cat([operations.active, gone], 2), (*sizes, total - alive[0]))


def _options(depths: Depths) -> dict[str, Any]:
    own: dict[str, Any] = {"attention_depth": depths.attention, "mlp_depth": depths.mlp, "keep_tokens": depths.keep}
    removed = not depths.update_only
    return own | {"query_depth": depths.query if removed else None, "attention": ATTENTION[not removed]}
