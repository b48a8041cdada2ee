"""The embedded default: a tiny trained MLLM and a synthetic VQA set, so that everything runs without a download."""
