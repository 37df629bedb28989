"""Export: checkpoints in the formats of other engines."""
