"""Serve: a model behind OpenAI's HTTP interface."""
