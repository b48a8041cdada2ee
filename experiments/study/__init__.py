"""A study of policies: whole grids of them measured as they are, so that what a fit estimates can be judged."""
