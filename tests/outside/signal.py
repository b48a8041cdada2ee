"""A signal that this file defines, provides and reads: how bright each visual token's place in the picture is."""

from dataclasses import dataclass

import torch
from torch.nn.functional import adaptive_avg_pool2d

import tokenprune as tp


@dataclass(frozen=True)
class Brightness(tp.Signal):
    shape = "tokens"
    channel: int = 0


@tp.provides(Brightness)
def brightness(signal, view):
    pictures = view.encoded.pictures
    return torch.cat([adaptive_avg_pool2d(each.pixels[:, signal.channel], each.grid).flatten() for each in pictures])


@tp.register_pruner("brightest")
@dataclass(frozen=True, kw_only=True)
class Brightest(tp.ScorePruner):
    """Keeps the brightest tokens."""

    channel: int = 0
    requires = property(lambda self: frozenset({Brightness(self.channel)}))

    def score(self, tokens):
        return tokens.signal(Brightness(self.channel))
