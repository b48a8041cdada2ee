"""What a pruner may ask for besides the visual tokens: values with parameters, which somebody provides.

Written down, a signal is its kind with all parameters, ``tower_attention[query=cls,layer=None]``, or a plain name,
``cls_attention``, which stands for it whatever its other parameters are. A class of a third party that derives from
``Signal`` is known by its name at once.
"""

from tokenprune.core.signals.base import KINDS, OneOf, Signal, Sizes, parse, plain_names
from tokenprune.core.signals.early import (
    TOWER,
    Encoder,
    Evidence,
    Library,
    PairedImage,
    PairedText,
    PromptEmbeds,
    PromptMask,
    Question,
    SmallerPicture,
    TowerAttention,
    TowerKeys,
    TowerStates,
)
from tokenprune.core.signals.inside import (
    HeadKeys,
    ImageEmbeds,
    Keys,
    NormedHidden,
    RopeSimilarity,
    Scored,
    ScoringLayer,
    TextAttention,
    TextEmbeds,
    TextKeys,
    TextMask,
    TextNormedHidden,
    TextRows,
)

__all__ = [
    "KINDS",
    "TOWER",
    "Encoder",
    "Evidence",
    "HeadKeys",
    "ImageEmbeds",
    "Keys",
    "Library",
    "NormedHidden",
    "OneOf",
    "PairedImage",
    "PairedText",
    "PromptEmbeds",
    "PromptMask",
    "Question",
    "RopeSimilarity",
    "Scored",
    "ScoringLayer",
    "Signal",
    "Sizes",
    "SmallerPicture",
    "TextAttention",
    "TextEmbeds",
    "TextKeys",
    "TextMask",
    "TextNormedHidden",
    "TextRows",
    "TowerAttention",
    "TowerKeys",
    "TowerStates",
    "parse",
    "plain_names",
]
