"""Compressing weights: packed formats, and models that hold them."""
