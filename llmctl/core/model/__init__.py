"""The transformer itself: positions, attention, layers, cache, first weights."""
