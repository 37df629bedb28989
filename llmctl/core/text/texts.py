"""Texts: what single tokens add to a text."""

from llmctl.core.text.tokenizer import Tokenizer


class Texts:
    """What single tokens add to a text: `texts(id)`.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._before = tokenizer.encode("a")  # many tokenizers take the space off a text's first word
        self._cut = len(tokenizer.decode(self._before, skip_special=False))
        self._known: dict[int, str] = {}

    def __call__(self, id: int) -> str:
        """Its text after another word; its spelling in the vocabulary where that is no whole character."""
        if id not in self._known:
            text = self._tokenizer.decode([*self._before, id], skip_special=False)[self._cut :]
            self._known[id] = text if text and "\ufffd" not in text else self.token(id)
        return self._known[id]

    def token(self, id: int) -> str:
        """Its spelling in the vocabulary."""
        return self._tokenizer.token(id) or f"<{id}>"
