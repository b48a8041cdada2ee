"""Pictures and clips of random pixels, and the questions about them."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGE_SIZE = 40  # pixels of a side, unless said
SIZES = [(80, 80), (40, 80), (80, 24), (40, 40)]  # height and width of each picture in turn, pixels
FRAMES = 3
QUESTIONS = ("what color is the circle ?", "how many red things are there ?", "is there a star ?")


def picture(seed: int, height: int = IMAGE_SIZE, width: int = IMAGE_SIZE) -> Image.Image:
    """A picture of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def clip(seed: int) -> Tensor:
    """A video of random pixels, (frames, 3, height, width)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 255, (FRAMES, 3, 50, 60), dtype=torch.uint8, generator=generator)
