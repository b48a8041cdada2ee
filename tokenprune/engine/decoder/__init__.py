"""Inside the LLM: decoder layers that see fewer tokens while a call runs."""
