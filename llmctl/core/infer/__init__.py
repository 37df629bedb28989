"""What a model says of texts that it reads and does not continue: fills of masks, vectors, labels."""
