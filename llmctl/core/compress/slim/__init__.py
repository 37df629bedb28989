"""Structured pruning: heads, neurons, channels and layers cut out, which leaves a smaller dense model."""
