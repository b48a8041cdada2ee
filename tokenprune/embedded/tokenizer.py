"""The word-level tokenizer that the embedded language model and its CLIP text tower share."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tokenprune.embedded.questions import plural
from tokenprune.embedded.scenes import COLORS, LETTERS, SHAPES

# The EOS id is not 2: CLIPTextModel would then follow a legacy rule and pool at the largest id.
SPECIAL = ("<pad>", "<s>", "<unk>", "</s>", "<image>", "USER:", "ASSISTANT:")
FUNCTION_WORDS = "? . , a an is there what color the shape how many are thing things where letter on with and"
ANSWER_WORDS = "yes no top left right bottom center nothing 0 1 2 3 4 5 6 7 8 9"
WORDS = (
    *f"{FUNCTION_WORDS} {ANSWER_WORDS}".split(),
    *COLORS,
    *SHAPES,
    *(plural(shape) for shape in SHAPES),
    *LETTERS.lower(),
)
VOCABULARY = {token: index for index, token in enumerate((*SPECIAL, *WORDS))}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\\n' }}"
    "{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def build_tokenizer(*, append_eos: bool = False, max_length: int = 512) -> PreTrainedTokenizerFast:
    """Build the tokenizer.

    Args:
        append_eos: close each text with ``</s>``, as a CLIP text tower wants it; a language model does not.
        max_length: longest sequence, tokens.
    """
    core = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if append_eos else "<s> $A",
        special_tokens=[("<s>", VOCABULARY["<s>"]), ("</s>", VOCABULARY["</s>"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="right" if append_eos else "left",
        model_max_length=max_length,
        extra_special_tokens=None if append_eos else {"image_token": "<image>"},
    )
