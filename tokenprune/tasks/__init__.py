"""Sets of questions about images, one a file."""
