"""The model ``tokenprune`` of ``lmms-eval --model``: pruned models for people who must run that command."""
