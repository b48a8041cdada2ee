"""What is measured, as plain functions."""
