"""Pruning: scores of weights, masks of them, methods that mend what is left, a form that is smaller on disk."""
