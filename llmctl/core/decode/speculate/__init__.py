"""Guessing tokens ahead and reading them at once: the same text, sooner."""
