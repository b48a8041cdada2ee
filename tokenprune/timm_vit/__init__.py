"""ViT classifiers of timm, whose patches the pruners of visual tokens prune between blocks.

This is no ``ModelAdapter``: that tells of prompts, placeholders and an LLM, none of which a classifier has.
"""
