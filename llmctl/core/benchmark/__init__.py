"""Benchmarks: files of records put to a model, and figures of what it answers."""
