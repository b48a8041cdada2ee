"""What a pruner may ask an adapter for besides the visual tokens."""

from __future__ import annotations

from enum import StrEnum


class Signal(StrEnum):
    """A name and what it stands for; the values are public and stable."""

    # Before the LLM.
    CLIP_IMAGE_EMBEDS = "clip_image_embeds"  # (B, N, C) patches in the space that image and text share
    CLIP_TEXT_EMBEDS = "clip_text_embeds"  # (B, M, C) segments of the question in that space
    PROMPT_EMBEDS = "prompt_embeds"  # (B, P, D) the LLM's input embeddings of the instruction
    PROMPT_MASK = "prompt_mask"  # (B, P) bool, False for padding
    CLS_ATTENTION = "cls_attention"  # (B, H, N) attention of the vision tower's CLS token to the patches
    RECEIVED_ATTENTION = "received_attention"  # (B, H, N) mean attention of the image's patches to a token's patches
    VISION_HIDDEN = "vision_hidden"  # (B, N, V) the vision tower's features before the projector
    ENCODER_FEATURES = "encoder_features"  # (B, N, C) another encoder's features of the image at the tokens' places
    RESIZED_FEATURES = "resized_features"  # (B, N, D) the visual tokens of the image shrunk to fewer, then 0
    EVIDENCE = "evidence"  # (B, N) 1 at tokens that show what is asked about, else 0: the truth, for controls
    # Before the LLM, of a layer of the vision tower; inside, of the scoring layer, after rotation.
    KEYS = "keys"  # (B, N, C) keys, heads side by side
    # Inside the LLM. Q text rows follow the last visual token, see ``Selector.text_rows``; the last is no padding.
    TEXT_ATTENTION = "text_attention"  # (B, H, Q, N) attention probabilities of text rows to visual tokens
    TEXT_MASK = "text_mask"  # (B, Q) bool, False for padding, which comes first
    TEXT_EMBEDS = "text_embeds"  # (B, Q, D) the LLM's input embeddings of the text rows
    IMAGE_EMBEDS = "image_embeds"  # (B, M, D) those of all visual tokens that entered the LLM, M >= N
    TEXT_KEYS = "text_keys"  # (B, Q, C) keys of the text rows
    NORMED_HIDDEN = "normed_hidden"  # (B, N, D) hidden states of the visual tokens after the LLM's final norm
    TEXT_NORMED_HIDDEN = "text_normed_hidden"  # (B, Q, D) those of the text rows
    ROPE_SIMILARITY = "rope_similarity"  # (B, Q, N) scaled dot product of rotated all-ones queries and keys


LLM_SIGNALS = frozenset(
    {
        Signal.KEYS,
        Signal.TEXT_ATTENTION,
        Signal.TEXT_MASK,
        Signal.TEXT_EMBEDS,
        Signal.IMAGE_EMBEDS,
        Signal.TEXT_KEYS,
        Signal.NORMED_HIDDEN,
        Signal.TEXT_NORMED_HIDDEN,
        Signal.ROPE_SIMILARITY,
    }
)
PAIRED = frozenset({Signal.CLIP_IMAGE_EMBEDS, Signal.CLIP_TEXT_EMBEDS})
PROMPT = frozenset({Signal.PROMPT_EMBEDS, Signal.PROMPT_MASK})
VISION = frozenset({Signal.RECEIVED_ATTENTION, Signal.KEYS, Signal.VISION_HIDDEN})  # of towers with a layer to read
TEXTUAL = PROMPT | {Signal.CLIP_TEXT_EMBEDS}
FOREIGN = frozenset({Signal.ENCODER_FEATURES, Signal.EVIDENCE})  # not of the model, so that any adapter can have them
OF_A_LAYER = frozenset({Signal.CLS_ATTENTION, Signal.RECEIVED_ATTENTION, Signal.KEYS})  # of the vision tower
