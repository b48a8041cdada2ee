"""Before the LLM: images are encoded, tokens chosen, and prompts shortened to those that stay."""
