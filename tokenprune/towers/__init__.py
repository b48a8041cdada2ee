"""Vision encoders: their sizes, layers, tiles, frames and signals."""
