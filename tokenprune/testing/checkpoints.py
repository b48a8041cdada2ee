"""The tiny LLaVA on the disk."""

from pathlib import Path

from tokenprune.testing.families.llava import shared_llava
from tokenprune.testing.towers import tiny_clip


def save_llava(folder: Path, clip: bool = True) -> Path:
    """A checkpoint as one gets it from the hub, with the paired CLIP in a sub-folder."""
    for part in shared_llava("sdpa"):
        part.save_pretrained(folder)
    if clip:
        for part in tiny_clip():
            part.save_pretrained(folder / "clip")
    return folder
