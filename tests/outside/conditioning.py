"""A conditioning: tokens in the middle of the picture are the more relevant."""

from dataclasses import dataclass

from tokenprune.conditioning.base import Conditioning, register_conditioning


@register_conditioning("centre")
@dataclass(frozen=True)
class Centre(Conditioning):
    """Nearness to the middle of the picture."""

    def _relevance(self, tokens, scope):
        line, column = tokens.place[:, 1].float(), tokens.place[:, 2].float()
        distance = (line - line.mean()).square() + (column - column.mean()).square()
        return -distance.expand(tokens.batch_size, -1).to(tokens.features.device)
