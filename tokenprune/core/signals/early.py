"""Signals of images and prompts before the LLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from tokenprune.core.signals.base import Signal

Library = Literal["clip", "open_clip"]
Question = Literal["own", "other"]
Layer = int | float  # from 0, or from the end if below 0; a float in [0, 1): so far up, for towers of any depth


@dataclass(frozen=True)
class TowerAttention(Signal):
    """(B, H, N) attention inside the vision tower that visual tokens receive.

    Attributes:
        query: who asks: the CLS token, or the patches of a picture, over which it is the mean.
        layer: of the tower, see ``Layer``; None for the one whose output the projector reads.
    """

    plain_names: ClassVar[tuple[str, ...]] = ("cls_attention", "received_attention")
    shape: ClassVar[str] = "tower_heads tokens"
    fill: ClassVar[Literal["attention"]] = "attention"
    query: Literal["cls", "patches"] = "cls"
    layer: Layer | None = None

    @property
    def plain(self) -> str:
        """The plain name by who asks: ``cls_attention`` or ``received_attention``."""
        return self.plain_names[self.query == "patches"]

    @property
    def reads_layers(self) -> bool:
        """Whether hidden states in the tower are read: attention is always made of them."""
        return True


@dataclass(frozen=True)
class TowerKeys(Signal):
    """(B, N, C) keys of a layer of the vision tower, heads side by side.

    Attributes:
        layer: of the tower, see ``Layer``; None for the one whose output the projector reads.
    """

    plain_names: ClassVar[tuple[str, ...]] = ("keys",)
    shape: ClassVar[str] = "tokens tower_width"
    layer: Layer | None = None

    @property
    def reads_layers(self) -> bool:
        """Whether hidden states in the tower are read: keys are always made of them."""
        return True


@dataclass(frozen=True)
class TowerHeadMean(Signal):
    """(B, N, d) keys or values of a layer of the vision tower, mean over its heads.

    Attributes:
        of: which.
        layer: of the tower, see ``Layer``; None for the one whose output the projector reads.
    """

    plain_names: ClassVar[tuple[str, ...]] = ("mean_keys", "mean_values")
    shape: ClassVar[str] = "tokens tower_head_dim"
    of: Literal["keys", "values"] = "keys"
    layer: Layer | None = None

    @property
    def plain(self) -> str:
        """The plain name by what the mean is of: ``mean_keys`` or ``mean_values``."""
        return self.plain_names[self.of == "values"]

    @property
    def reads_layers(self) -> bool:
        """Whether hidden states in the tower are read: keys and values are always made of them."""
        return True


@dataclass(frozen=True)
class TowerValueAttention(Signal):
    """(B, H, N) softmax of the products of the CLS token's value with all values of a layer of the vision tower.

    It is attention with values in place of queries and keys, and without a scale.

    Attributes:
        layer: of the tower, see ``Layer``; None for the one whose output the projector reads.
    """

    plain_names: ClassVar[tuple[str, ...]] = ("cls_value_attention",)
    shape: ClassVar[str] = "tower_heads tokens"
    fill: ClassVar[Literal["attention"]] = "attention"
    layer: Layer | None = None

    @property
    def reads_layers(self) -> bool:
        """Whether hidden states in the tower are read: values are always made of them."""
        return True


@dataclass(frozen=True)
class TowerLogits(Signal):
    """(B, H, N) what the CLS token's attention to visual tokens is before the softmax, of a layer of the vision tower.

    Attributes:
        layer: of the tower, see ``Layer``; None for the one whose output the projector reads.
    """

    plain_names: ClassVar[tuple[str, ...]] = ("cls_logits",)
    shape: ClassVar[str] = "tower_heads tokens"
    layer: Layer | None = None

    @property
    def reads_layers(self) -> bool:
        """Whether hidden states in the tower are read: logits are always made of them."""
        return True


@dataclass(frozen=True)
class TowerStates(Signal):
    """(B, N, V) hidden states behind a layer of the vision tower, before the projector.

    Attributes:
        layer: of the tower, see ``Layer``; None for the one whose output the projector reads.
    """

    plain_names: ClassVar[tuple[str, ...]] = ("vision_hidden",)
    shape: ClassVar[str] = "tokens tower_width"
    layer: Layer | None = None

    @property
    def reads_layers(self) -> bool:
        """Whether hidden states in the tower are read: if a layer is named, as what the projector reads is there."""
        return self.layer is not None


@dataclass(frozen=True)
class PairedImage(Signal):
    """(B, N, C) visual tokens in the space that the vision tower shares with the text tower it was trained with.

    Attributes:
        library: that must provide the paired tower; None for whichever does.
    """

    plain_names: ClassVar[tuple[str, ...]] = ("clip_image_embeds",)
    shape: ClassVar[str] = "tokens shared"
    library: Library | None = None


@dataclass(frozen=True)
class PairedText(Signal):
    """(B, M, C) pieces of the question in the space that vision tower and text tower share.

    Attributes:
        library: that must provide the paired tower; None for whichever does.
        question: the one that is asked, or another that the sample comes with, for controls.
    """

    plain_names: ClassVar[tuple[str, ...]] = ("clip_text_embeds",)
    shape: ClassVar[str] = "1 shared"
    of_prompts: ClassVar[bool] = True
    library: Library | None = None
    question: Question = "own"


@dataclass(frozen=True)
class PromptEmbeds(Signal):
    """(B, P, D) the LLM's input embeddings of the question.

    Attributes:
        question: the one that is asked, or another that the sample comes with, for controls.
    """

    shape: ClassVar[str] = "text width"
    of_prompts: ClassVar[bool] = True
    question: Question = "own"


@dataclass(frozen=True)
class PromptMask(Signal):
    """(B, P) bool, False for padding of the question.

    Attributes:
        question: the one that is asked, or another that the sample comes with, for controls.
    """

    shape: ClassVar[str] = "text"
    fill: ClassVar[Literal["mask"]] = "mask"
    of_prompts: ClassVar[bool] = True
    question: Question = "own"


@dataclass(frozen=True)
class Encoder(Signal):
    """(B, N, C) another encoder's features of the image at the places of the visual tokens.

    Attributes:
        source: ``timm:<model>``.
    """

    plain_names: ClassVar[tuple[str, ...]] = ("encoder_features",)
    shape: ClassVar[str] = "tokens channels"
    source: str


@dataclass(frozen=True)
class SmallerPicture(Signal):
    """(B, N, D) the visual tokens of the image shrunk to as many as stay, then 0."""

    plain_names: ClassVar[tuple[str, ...]] = ("resized_features",)
    shape: ClassVar[str] = "tokens width"


@dataclass(frozen=True)
class Evidence(Signal):
    """(B, N) 1 at tokens that show what is asked about, else 0: the truth, for controls."""

    shape: ClassVar[str] = "tokens"


OfLayer = TowerAttention | TowerHeadMean | TowerKeys | TowerLogits | TowerStates | TowerValueAttention

# What any vision tower gives that has a layer to read.
TOWER: frozenset[Signal] = frozenset({TowerAttention("patches"), TowerKeys(), TowerStates()})
