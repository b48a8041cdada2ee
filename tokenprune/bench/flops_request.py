"""What ``tokenprune flops`` is asked for: a model by its card or config, a pruner, and budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from tokenprune.bench.flops_table import Case, pruned_case, unpruned_case
from tokenprune.core.budget import Budget
from tokenprune.core.errors import BudgetError, ConfigError, TokenPruneError, hint
from tokenprune.core.sizes import ModelSpec
from tokenprune.costs.model_card import card_names, load_card
from tokenprune.engine.loading import find_checkpoint
from tokenprune.pruners.base import Pruner, create_pruner
from tokenprune.sweeps.config import apply_overrides, parse_budgets, parse_pruner


@dataclass(frozen=True)
class Request:
    """A checked request for a table of FLOPs.

    Attributes:
        title: of the table: model, pruner with the options that were given, and text.
        note: where the number of visual tokens comes from.
        spec: sizes of the model.
        cases: the unpruned model, and the pruner at each budget.
    """

    title: str
    note: str
    spec: ModelSpec
    cases: tuple[Case, ...]


def request(model: str | None, config: Path | None, overrides: Sequence[str], text_tokens: int) -> Request:
    """Check a request: find the model and the pruner, and what the pruner leaves.

    Args:
        model: name of a model card.
        config: instead, a ``config.json`` that an adapter knows, or its folder or hub id.
        overrides: ``pruner.*`` and ``budget.*``, as of ``tokenprune run``; none leaves the model unpruned.
        text_tokens: of the prompt besides the visual tokens.

    Raises:
        TokenPruneError: if a name, option, budget or file is wrong.
    """
    if text_tokens < 1:
        raise ConfigError(f"text_tokens must be at least 1, got {text_tokens}")
    raw = apply_overrides(OmegaConf.create(), overrides, "flops")
    for key in raw:
        if key not in ("pruner", "budget"):
            raise ConfigError(f"flops knows no {key!r}; {hint(key, ('pruner', 'budget'))}")
    title, note, spec = _model(model, config)
    cases = [unpruned_case(spec)]
    if raw:
        if "pruner" not in raw:
            raise ConfigError("a budget needs a pruner; give --pruner")
        part = parse_pruner(raw["pruner"], "pruner")
        pruner = create_pruner(part.name, **part.options)
        title = f"{title}, {' '.join([part.name, *(f'{key}={value}' for key, value in part.options.items())])}"
        try:
            cases += [pruned_case(spec, pruner, budget, text_tokens) for budget in _budgets(raw, pruner, text_tokens)]
        except TokenPruneError as error:
            raise type(error)(f"pruner {part.name!r}: {error}") from None
    return Request(f"{title}, {text_tokens} text tokens", note, spec, tuple(cases))


def _model(model: str | None, config: Path | None) -> tuple[str, str, ModelSpec]:
    if (model is None) == (config is None):
        raise ConfigError(f"give one of --model and --config; models: {', '.join(card_names())}")
    if config is not None:
        if config.suffix == ".json" and not config.is_file():
            raise ConfigError(f"config {str(config)!r} does not exist or is not a file")
        return str(config), "visual tokens as the config has them", find_checkpoint(str(config)).spec
    card = load_card(str(model))
    return card.name, f"{card.hub}: {card.note}", card.spec


def _budgets(raw: dict[str, object], pruner: Pruner, text_tokens: int) -> tuple[Budget, ...]:
    """The budgets that are asked for, or the pruner's own; one of FLOPs is for the text length of the table."""
    given = raw.get("budget")
    if pruner.budget is not None:
        if given is not None:
            raise ConfigError(f"its options fix its budget ({pruner.budget}); leave out the other")
        return (pruner.budget,)
    if given is None:
        raise BudgetError("give a budget: --keep-tokens, or budget.keep_ratio, budget.average_tokens or budget.flops")
    if isinstance(given, dict) and "flops" in given:
        given = {"text_tokens": text_tokens, **given}
    return parse_budgets(given, "budget")
