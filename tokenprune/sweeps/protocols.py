"""Protocols: set-ups in which papers measure, so that a number of ours may stand beside a number of theirs.

A configuration says that it follows one (``protocol: llava15``); nothing is compared without that. What a protocol sets
is in ``configs/benchmarks``; its name alone changes no result.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tokenprune.core.errors import ConfigError, hint

PROTOCOLS: Mapping[str, str] = MappingProxyType(
    {
        "llava15": "LLaVA-1.5's own evaluation: system sentence, square pictures, its prompts, its reading",
        "llava_next": "LLaVA's evaluation; pictures of 672 x 672, so five tiles (2,880 tokens), no newline tokens",
        "qwen25_vl": "lmms-eval's limits of pixels, system sentence and prompts",
        "qwen25_vl_1296": "pictures of 1,008 x 1,008, so 1,296 tokens",
        "video_onevision": "lmms-eval, 32 frames of 196 tokens, no subtitles",
    }
)


def check_protocol(name: str | None) -> None:
    """Refuse a protocol that there is not.

    Raises:
        ConfigError: if there is none of that name; None is allowed.
    """
    if name is not None and name not in PROTOCOLS:
        raise ConfigError(f"there is no protocol {name!r}; {hint(name, PROTOCOLS)}")
