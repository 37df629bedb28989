"""How a model's next-token scores become text."""
