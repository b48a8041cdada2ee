"""Blocks in which calls of a user's own model are pruned."""
