"""Training: the one loop, its objectives, its optimizers."""
