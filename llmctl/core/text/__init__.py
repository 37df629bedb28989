"""Text: tokenizers, their training, and the way from text to ids and back."""
