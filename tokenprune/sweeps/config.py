"""A run's configuration: YAML and ``key=value`` overrides in, a frozen and checked ``RunConfig`` out.

Names of pruners, tasks and models are looked up later, by ``build``; here it is decided which keys there are and what
type each value has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tokenprune.core.budget import Budget
from tokenprune.core.errors import ConfigError
from tokenprune.core.options import construct
from tokenprune.core.to_yaml import to_plain
from tokenprune.sweeps.imports import absolute_paths, import_files
from tokenprune.sweeps.model_config import ModelConfig
from tokenprune.sweeps.protocols import check_protocol

MALFORMED = (yaml.YAMLError, OmegaConfBaseException, TypeError, ValueError)  # what reading and overriding raise


@dataclass(frozen=True)
class Part:
    """A registered thing by name, with its options.

    Attributes:
        name: its registry key.
        options: fields of its dataclass; what is left out has its default.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any, where: str) -> Part:
        """Make a part of a name, or of a mapping of ``name`` and options.

        Args:
            value: what a user wrote.
            where: what to call it in messages.

        Raises:
            ConfigError: if it is neither.
        """
        options = {"name": value} if isinstance(value, str) else _mapping(value, where)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise ConfigError(f"{where} needs a name, got {name!r}")
        return cls(name, options)

    def to_mapping(self) -> dict[str, Any]:
        """Name and options as one mapping."""
        return {"name": self.name, **self.options}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run: one pruner and its baselines, each at each budget, on one model and task.

    In YAML a pruner is a name, a mapping of ``name`` and options, or a list of these: a composition, see ``Compose``.

    Attributes:
        model: the model.
        task: the questions.
        pruner: what is studied.
        baselines: what it is compared with; ``none`` (no pruning) and ``random`` are always among them.
        budget: how many visual tokens stay, one cell of the table each. A pruner whose options fix its budget has one
            cell, with that.
        seed: of every pruner that has an option ``seed`` which is not set.
        batch_size: questions at a time.
        max_new_tokens: longest answer, tokens; None takes the task's.
        timing_repeats: timed pairs of prefills per cell; 0 measures no time.
        output: folder of the runs' folders.
        tracking: where records go besides the disk.
        launcher: where cells are computed.
        imports: Python files that register pruners, tasks and the like; in YAML relative to the file's folder.
        protocol: name of the set-up of published tables that this one follows, see ``sweeps.protocols``; None compares
            with nothing.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    task: Part = Part("scenes")
    pruner: Part
    baselines: tuple[Part, ...] = ()
    budget: tuple[Budget, ...]
    seed: int = 0
    batch_size: int = 32
    max_new_tokens: int | None = None
    timing_repeats: int = 5
    output: str = "runs"
    tracking: Part = Part("none")
    launcher: Part = Part("local")
    imports: tuple[str, ...] = ()
    protocol: str | None = None

    def __post_init__(self) -> None:
        for key, least in {"batch_size": 1, "max_new_tokens": 1, "timing_repeats": 0, "seed": 0}.items():
            value = getattr(self, key)
            if value is not None and value < least:
                raise ConfigError(f"{key} must be at least {least}, got {getattr(self, key)}")
        check_protocol(self.protocol)
        given = [part.name for part in (*self.baselines, self.pruner)]
        always = [Part(name) for name in ("none", "random") if name not in given]
        object.__setattr__(self, "baselines", (*always, *self.baselines))

    def to_mapping(self) -> dict[str, Any]:
        """The configuration as plain mappings and lists, as one would write it in YAML."""
        mapping: dict[str, Any] = to_plain(self)
        return {key: value for key, value in mapping.items() if value or key not in ("imports", "protocol")}


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration file.

    Args:
        path: YAML file.
        overrides: ``dotted.key=value``, which replace what the file says; one of a budget replaces all of it.

    Raises:
        ConfigError: if a file, key, type or value is wrong.
        BudgetError: if a budget is.
    """
    return parse_config(load_mapping(path, overrides))


def load_mapping(path: Path | str, overrides: Sequence[str]) -> Any:
    """Read a file and apply overrides: plain mappings and lists; ConfigError if it cannot be read."""
    try:
        config = OmegaConf.load(path)
    except OSError as error:
        raise ConfigError(f"config {str(path)!r} cannot be read: {error.strerror}") from None
    except MALFORMED as error:
        raise ConfigError(f"config {str(path)!r}: {' '.join(str(error).split())}") from None
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path} must hold a mapping of keys to values")
    mapping = apply_overrides(config, overrides, f"config {str(path)!r}")
    if "imports" in mapping:
        mapping["imports"] = absolute_paths(mapping["imports"], Path(path).absolute().parent)
        import_files(mapping["imports"])
    return mapping


def apply_overrides(config: DictConfig, overrides: Sequence[str], where: str) -> Any:
    """Apply overrides to ``config``: plain mappings and lists; ConfigError, naming ``where``, if one does not fit."""
    for override in overrides:
        if override.find("=") < 1:
            raise ConfigError(f"override {override!r} is not of the form key=value")
    if any(override.partition("=")[0].partition(".")[0] == "budget" for override in overrides):
        config.pop("budget", None)  # of another kind perhaps, and there can be one only
    try:
        for override in overrides:
            key, _, value = override.partition("=")
            _override(config, key, value)
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MALFORMED as error:
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from None


def _override(config: DictConfig, key: str, text: str) -> None:
    """Set a key: a mapping is merged into a mapping, anything else takes the place of what is there."""
    value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[call-overload,index]
    present = OmegaConf.select(config, key, throw_on_resolution_failure=False)
    OmegaConf.update(config, key, value, merge=isinstance(present, DictConfig) and isinstance(value, dict))


def parse_config(raw: Any) -> RunConfig:
    """Make a ``RunConfig`` of plain mappings; raises as ``load_config`` does."""
    parsers: dict[str, Callable[[Any, str], Any]] = {
        "model": parse_model,
        "pruner": parse_pruner,
        **dict.fromkeys(("task", "tracking", "launcher"), Part.of),
        "baselines": parse_pruners,
        "budget": parse_budgets,
    }
    given = _mapping(raw, "config").items()
    import_files(dict(given).get("imports") or ())
    return construct(RunConfig, {k: parsers[k](v, k) if k in parsers else v for k, v in given}, "config")


def _mapping(value: Any, where: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a mapping of keys to values, got {value!r}")
    return dict(value)


def _sequence(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def parse_pruner(value: Any, where: str) -> Part:
    """Read a pruner: a name, a mapping of it and options, or a list, which is a composition; else ConfigError."""
    if isinstance(value, list | tuple):
        return Part("compose", {"pruners": [part.to_mapping() for part in parse_pruners(value, where)]})
    return Part.of(value, where)


def parse_pruners(value: Any, where: str) -> tuple[Part, ...]:
    """Read one or several pruners; ConfigError if one is not a pruner."""
    return tuple(parse_pruner(item, f"{where}[{i}]") for i, item in enumerate(_sequence(value)))


def parse_model(value: Any, where: str) -> ModelConfig:
    """Read a model: a name, or a mapping of the fields; ConfigError if it is neither."""
    return construct(ModelConfig, {"name": value} if isinstance(value, str) else _mapping(value, where), where)


def parse_budgets(value: Any, where: str) -> tuple[Budget, ...]:
    """Read budgets: a mapping of a kind to one value or several; ConfigError or BudgetError if it is not one."""
    raw = _mapping(value, where)
    text = raw.pop("text_tokens", 0)  # one for all
    given = {key: _sequence(v) for key, v in raw.items() if v is not None}
    if len(given) == 1 and not all(given.values()):
        raise ConfigError(f"{where} is an empty list; give at least one")
    if len(given) != 1:  # the budget itself knows what is wrong
        construct(Budget, {key: values[0] if values else None for key, values in given.items()}, where)
    budgets = [construct(Budget, {key: v, "text_tokens": text}, where) for key, values in given.items() for v in values]
    return tuple(dict.fromkeys(budgets))
