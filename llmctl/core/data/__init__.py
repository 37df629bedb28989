"""Data: what is read (texts), what is stored (shards of tokens), and what a model is fed (batches)."""
