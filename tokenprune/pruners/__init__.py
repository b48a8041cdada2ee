"""One method a file; each registers itself when the package is first searched."""
