"""Runs a pruned model: from pixels to the last token, on models that stay as they are."""
