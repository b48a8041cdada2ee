"""Relevance by a paired text tower that open_clip provides: for towers that Hugging Face lacks, or SigLIP.

Paper: https://arxiv.org/abs/2506.10967 (CDPruner, section 3.3)
Differs: same formula as ``clip_text``. The default sign -1 is what was observed for the CLIP family; for SigLIP nobody
    has published which sign holds, so try both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tokenprune.conditioning.base import CONDITIONINGS
from tokenprune.conditioning.clip_text import CLIPText
from tokenprune.core.signals import Library


@CONDITIONINGS.register("open_clip_text", paper="https://arxiv.org/abs/2506.10967")
@dataclass(frozen=True)
class OpenCLIPText(CLIPText):
    """Mean cosine of a patch to the pieces of the question, in the space of an open_clip model."""

    library: ClassVar[Library] = "open_clip"
