"""A tiny PaliGemma and a tiny PaliGemma 2 of random weights, and their processor: 9 visual tokens an image."""

import warnings

from checks import finish, picture, text_config
from families import Family
from tiny import QUESTIONS
from tiny_gemma3 import PIXELS, scaled, siglip_config

PATCH, TOKENS = 16, 9


def tiny_tokenizer():
    from tokenizers import AddedToken

    from tokenprune.embedded.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(max_length=4096)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in ("\n", "answer", "en")])
    return tokenizer


def tiny_processor():
    from transformers import PaliGemmaProcessor, SiglipImageProcessor

    images = SiglipImageProcessor(size={"height": PIXELS, "width": PIXELS})
    images.image_seq_length = TOKENS
    return PaliGemmaProcessor(images, tiny_tokenizer())


def tiny_paligemma(attention="sdpa", decoder="gemma", **text):
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    vocabulary = len(tiny_processor().tokenizer)  # which the processor makes larger
    config = PaliGemmaConfig(
        vision_config=siglip_config(patch_size=PATCH),
        text_config=text_config(decoder, vocabulary, head_dim=16, **text),
        image_token_index=tiny_tokenizer().convert_tokens_to_ids("<image>"),
        projection_dim=64,
        hidden_size=64,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
    )
    return scaled(finish(PaliGemmaForConditionalGeneration(config), attention))


class PaliGemma(Family):
    chat, tower = False, "siglip"

    def make(self, attention):
        return tiny_paligemma(attention), tiny_processor()

    def ask(self, processor, *images_per_row, seed=0, side="left", only=None):
        texts = [
            "<image>" * number + "on the left " * row + QUESTIONS[row] for row, number in enumerate(images_per_row)
        ]
        images = [picture(seed + index) for index in range(sum(images_per_row))]
        if only is not None:
            before = sum(images_per_row[:only])
            texts, images = texts[only : only + 1], images[before : before + images_per_row[only]]
        with warnings.catch_warnings():  # it hands torch tensors to numpy in a way that numpy deprecates
            warnings.simplefilter("ignore", DeprecationWarning)
            return dict(processor(images=images, text=texts, padding=True, padding_side=side, return_tensors="pt"))

    def items(self, model, inputs):
        """Images follow one another without text between them."""
        numbers = self.placeholder(model, inputs["input_ids"]).sum(1) // TOKENS
        return [[TOKENS] * number for number in numbers.tolist()]

    def allowed(self, model, ids, prompt):
        """All of the prompt sees all of it."""
        allowed = super().allowed(model, ids, prompt)
        allowed[:prompt, :prompt] = True
        return allowed


FAMILIES = {"paligemma": PaliGemma()}
