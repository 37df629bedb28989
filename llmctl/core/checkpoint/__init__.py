"""Checkpoint directories: reading them into a model, and writing one."""
