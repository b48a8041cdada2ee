"""A tiny Gemma 3 of random weights and its processor: 9 visual tokens an image, each of four patches."""

import torch
from checks import finish, picture, text_config
from families import Family
from tiny import QUESTIONS

PIXELS, PATCH, TOKENS = 48, 8, 9
MARKS = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
CHAT_TEMPLATE = (
    "{% for message in messages %}<start_of_turn>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def tiny_tokenizer():
    from tokenizers import AddedToken

    from tokenprune.embedded.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(max_length=4096)
    tokenizer.add_special_tokens({"extra_special_tokens": [*MARKS.values()]})
    words = ["<start_of_turn>user", "<start_of_turn>model", "<end_of_turn>", "\n", "\n\n"]
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    for name, token in MARKS.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    return tokenizer


def tiny_processor():
    from transformers import Gemma3ImageProcessor, Gemma3Processor

    images = Gemma3ImageProcessor(size={"height": PIXELS, "width": PIXELS})
    return Gemma3Processor(images, tiny_tokenizer(), image_seq_length=TOKENS, chat_template=CHAT_TEMPLATE)


def siglip_config(**changes):
    from transformers import SiglipVisionConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return SiglipVisionConfig(**sizes, image_size=PIXELS, vision_use_head=False, **{"patch_size": PATCH, **changes})


def tiny_gemma3(attention="sdpa", window=512):
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    tokenizer = tiny_tokenizer()
    kinds = ["sliding_attention", "full_attention"] * 2
    own = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": window, "layer_types": kinds}
    config = Gemma3Config(
        vision_config=siglip_config(),
        text_config=text_config("gemma3_text", len(tokenizer), **own),
        mm_tokens_per_image=TOKENS,
        image_token_id=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        tie_word_embeddings=False,
    )
    return scaled(finish(Gemma3ForConditionalGeneration(config), attention, tokenizer.boi_token_id))


def scaled(model):
    """Gemma multiplies its embeddings by the root of their width; so that the layers still have a say."""
    with torch.no_grad():
        model.get_input_embeddings().weight /= model.config.text_config.hidden_size**0.5
    return model


class Gemma3(Family):
    tower = "siglip"

    def make(self, attention):
        return tiny_gemma3(attention), tiny_processor()

    def ask(self, processor, *images_per_row, seed=0, side="left", only=None):
        texts = [
            "USER: " + "on the left " * row + "where <start_of_image>\n" * number + QUESTIONS[row] + " ASSISTANT:"
            for row, number in enumerate(images_per_row)
        ]
        images = [picture(seed + index, 30 + index, 50) for index in range(sum(images_per_row))]
        nested = [[images.pop(0) for _ in range(number)] for number in images_per_row]
        rows = slice(None) if only is None else slice(only, only + 1)
        inputs = processor(images=nested[rows], text=texts[rows], padding=True, padding_side=side, return_tensors="pt")
        return dict(inputs)

    def allowed(self, model, ids, prompt):
        """What is of one image sees all of it."""
        visual = self.placeholder(model, ids)
        visual[prompt:] = False
        image = (visual & ~torch.cat([visual[:1] & False, visual[:-1]])).cumsum(0) * visual
        return super().allowed(model, ids, prompt) | ((image[:, None] == image) & visual)


FAMILIES = {"gemma3": Gemma3()}
