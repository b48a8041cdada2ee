"""LLaVA for the contract tests; the model itself is in ``tiny``."""

from families import Family
from tiny import IMAGE_SIZE, PATCH_SIZE, ask, tiny_llava, tiny_processor

TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2  # of an image


class Llava(Family):
    def make(self, attention):
        return tiny_llava(attention), tiny_processor()

    def ask(self, processor, *images_per_row, **options):
        return ask(processor, *images_per_row, **options)

    def items(self, model, inputs):
        return [[TOKENS] * (int(number) // TOKENS) for number in self.placeholder(model, inputs["input_ids"]).sum(1)]


FAMILIES = {"llava": Llava()}
