"""What a provider is, and which one makes a kind of signal."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokenprune.adapters.base import ModelAdapter
from tokenprune.core.errors import ModelError
from tokenprune.core.signals import (
    PairedImage,
    PairedText,
    PromptEmbeds,
    PromptMask,
    Signal,
    TowerAttention,
)
from tokenprune.core.steps import Selector

OURS = ("tower", "paired", "prompt", "encoder", "smaller_picture", "evidence", "inside")


@dataclass(frozen=True)
class Facts:
    """What is known of a model before its weights are loaded.

    Attributes:
        adapter: class of its adapter.
        config: of the model; None if only the family is known.
        text_tower: that was given, see ``ModelAdapter``.
    """

    adapter: type[ModelAdapter]
    config: Any = None
    text_tower: str | None = None


def always(signal: Signal, facts: Facts) -> bool:
    """Say of every model that it can give a signal."""
    return True


def fine(signal: Signal, facts: Facts) -> None:
    """Find nothing wrong with a model."""


def images(signal: Signal, view: Any) -> Hashable:
    """Say that a signal depends on the images alone."""
    return None


def loaded(signal: Signal, view: Any) -> None:
    """Load nothing, as all that a signal needs is there."""


@dataclass(frozen=True)
class Provider:
    """How signals of a kind are made.

    Attributes:
        make: the signal from a view: an ``Encoding`` before the LLM, (T, ...) or (B, ...) in the order of placeholders
            or prompts; ``StageRows`` inside, (G, ...).
        offered: whether a family can give it.
        check: raises ModelError, before any weights load, if something else is in the way.
        depends: on what besides the images, so that it is made once for each.
        ready: loads what it needs, before the time is taken.
    """

    make: Callable[[Any, Any], Tensor]
    offered: Callable[[Any, Facts], bool] = always
    check: Callable[[Any, Facts], None] = fine
    depends: Callable[[Any, Any], Hashable] = images
    ready: Callable[[Any, Any], None] = loaded


_PROVIDERS: dict[type[Signal], Provider] = {}


def provides(
    kind: type[Signal],
    *,
    offered: Callable[[Any, Facts], bool] = always,
    check: Callable[[Any, Facts], None] = fine,
    depends: Callable[[Any, Any], Hashable] = images,
    ready: Callable[[Any, Any], None] = loaded,
) -> Callable[[Callable[[Any, Any], Tensor]], Callable[[Any, Any], Tensor]]:
    """Decorator that makes a function the provider of a kind of signal; the last one that was registered applies.

    Args:
        kind: the signal's class.
        offered: see ``Provider``, as for all that follow.
        check: what raises.
        depends: on what.
        ready: loads what.
    """

    def register(make: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
        _PROVIDERS[kind] = Provider(make, offered, check, depends, ready)
        return make

    return register


def provider_of(signal: Signal) -> Provider | None:
    """What makes a signal; None if nothing does."""
    return _all().get(type(signal))


def _all() -> dict[type[Signal], Provider]:
    """All providers; those of the package are imported when the first is asked for."""
    for module in OURS:
        importlib.import_module(f"tokenprune.engine.providers.{module}")
    return _PROVIDERS


def choose(signal: Signal, facts: Facts, *, inside: bool) -> Signal | None:
    """The first alternative of a signal that a model can give at a stage; None if its family can give none.

    An alternative in whose way something else is, such as a text tower that is not known, gives place to the next.
    """
    able = []
    for each in signal.alternatives:
        provider = provider_of(each)
        if provider is not None and each.inside == inside and provider.offered(each, facts):
            able.append((each, provider))
    for each, provider in able[:-1]:
        with suppress(ModelError):
            provider.check(each, facts)
            return each
    return able[-1][0] if able else None


def missing(requires: Iterable[Signal], facts: Facts, *, inside: bool = False) -> list[Signal]:
    """Signals that a family cannot give at a stage, in none of their alternatives."""
    return [signal for signal in requires if choose(signal, facts, inside=inside) is None]


def check_signals(requires: Iterable[Signal], facts: Facts, *, inside: bool = False, where: str = "") -> list[Signal]:
    """The alternatives that are given for some signals.

    Raises:
        ModelError: if one cannot be given.
    """
    found = [(signal, choose(signal, facts, inside=inside)) for signal in requires]
    if absent := [signal for signal, given in found if given is None]:
        who = f"a stage inside the LLM{where}" if inside else facts.adapter.__name__
        raise refusal(who, absent, _offered(facts, inside=inside))
    chosen = [given for _, given in found if given is not None]
    for signal in chosen:
        provider = provider_of(signal)
        assert provider is not None
        provider.check(signal, facts)
    return chosen


def stand_ins(requires: Iterable[Signal], facts: Facts) -> list[str]:
    """What stands in before the LLM for signals that a model cannot give, one sentence each."""
    found = []
    for signal in sorted(requires, key=str):
        given, first = choose(signal, facts, inside=False), signal.alternatives[0]
        if given is not None and given != first:
            found.append(f"{given.plain} stands in for {first.plain}, which this model does not give")
    return found


def stage_signals(view: Any, selector: Selector) -> Iterator[tuple[Signal, Tensor]]:
    """The signals that a selector asks for at a stage inside the LLM.

    Args:
        view: ``StageRows``.
        selector: asks.
    """
    for signal in selector.requires:
        for each in signal.alternatives:
            provider = provider_of(each)
            if provider is not None and each.inside:
                yield each, provider.make(each, view)
                break


def _offered(facts: Facts, *, inside: bool) -> set[str]:
    """Plain names of what can be given at a stage."""
    if inside:
        return {name for kind in _all() if kind.inside for name in kind.plain_names}
    paired = PairedText.plain_names if PairedImage() in facts.adapter.on_offer() else ()
    towers = {signal.plain for signal in facts.adapter.on_offer()}
    return {*towers, *paired, *PromptEmbeds.plain_names, *PromptMask.plain_names}


def refusal(who: str, absent: Sequence[Signal], offered: Iterable[str]) -> ModelError:
    """Why signals cannot be given, and what could be.

    Args:
        who: cannot give them.
        absent: which.
        offered: plain names of those that it can give.
    """
    names, instead = sorted(offered), ""
    # With its parameters, where another of that name is on offer.
    wanted = ", ".join(sorted(str(each) if each.plain in names else each.plain for each in absent))
    if TowerAttention("cls") in absent and TowerAttention("patches").plain in names:
        instead = "; received_attention stands in for cls_attention, as there is no CLS token"
    if PromptEmbeds().plain in names and any(isinstance(each, PairedImage | PairedText) for each in absent):
        instead = "; no text tower is known for its vision tower: use conditioning prompt_embedding or none"
    return ModelError(f"{who} cannot give the signals {wanted}; it offers {', '.join(names)}{instead}")
