"""Who makes the signals that pruners ask for: a function a kind, which may come from outside the package."""
