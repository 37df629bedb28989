"""How it is done: torch, and no terminal."""
