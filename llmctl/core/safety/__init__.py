"""What a model writes that it should not, or refuses to write: judged text by text."""
