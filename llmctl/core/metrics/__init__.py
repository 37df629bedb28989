"""Numbers that say how good a model, or its output, is."""
