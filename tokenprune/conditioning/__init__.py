"""Where relevance to the prompt comes from, one source a file."""
