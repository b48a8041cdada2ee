"""Signals of the space that a vision tower shares with the text tower that it was trained with."""

from __future__ import annotations

from collections.abc import Hashable

from torch import Tensor

from tokenprune.core.precision import exact
from tokenprune.core.signals import PairedImage, PairedText, TowerStates
from tokenprune.engine.providers.base import Facts, provides
from tokenprune.engine.providers.encoding import Encoding
from tokenprune.towers.base import TowerOutput
from tokenprune.towers.text.base import find_source


def known(signal: PairedImage | PairedText, facts: Facts) -> bool:
    """Whether the towers of a family have text towers."""
    return PairedImage() in facts.adapter.on_offer()


def found(signal: PairedImage | PairedText, facts: Facts) -> None:
    """Raise ModelError if the text tower of a model is not known; see ``find_source``."""
    if facts.config is not None:
        find_source(facts.config, facts.text_tower, signal.library)


def load(signal: PairedImage | PairedText, view: Encoding) -> None:
    """Load the text tower."""
    view.text_tower(signal.library)


def tower(signal: PairedImage, view: Encoding) -> Hashable:
    """The text tower, on which the signal depends."""
    return view.text_tower(signal.library)


def tower_and_question(signal: PairedText, view: Encoding) -> Hashable:
    """The text tower and what is asked, on which the signal depends."""
    return view.text_tower(signal.library), view.asked(signal.question)


@provides(PairedImage, offered=known, check=found, depends=tower, ready=load)
def paired_image(signal: PairedImage, view: Encoding) -> Tensor:
    """Embeddings (T, C) in the shared space; of patches that make a token together, their mean."""
    adapter, states, text_tower = view.adapter, TowerStates(), view.text_tower(signal.library)
    parts = {}
    for modality, output in view.encoded.outputs.items():
        patches = adapter.tower.signal(states, TowerOutput(adapter.model, modality, output, view.inputs))
        with exact(view.encoded.features.device):
            embedded = text_tower.project(patches, normed=adapter.tower.normed)
        parts[modality] = adapter.per_token(modality, view.encoded.at_all_patches(modality, embedded), view.inputs)
    return view.encoded.in_order(parts)


@provides(PairedText, offered=known, check=found, depends=tower_and_question, ready=load)
def paired_text(signal: PairedText, view: Encoding) -> Tensor:
    """Embeddings (B, M, C) of the questions in the shared space."""
    with exact(view.encoded.features.device):
        return view.text_tower(signal.library).embed_text(view.asked(signal.question))
