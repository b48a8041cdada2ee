"""Model families: the only package that knows the model library."""
