"""Detokenizer: ids to text one id at a time, whole characters only, and in sum exactly what decoding all gives."""

import copy
import re

import tokenizers

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
BROKEN = "\ufffd"  # what decoding puts in the place of bytes that are no character (yet)


class Detokenizer:
    """Turns a stream of ids into a stream of text; `push` each id, then `flush`.

    The text of an id depends on its neighbours: characters are cut across tokens, a first token loses its space.
    So the last tokens are decoded together, an anchor that was given out already and those since, and only what
    follows the anchor's text is given out. Text waits while it may still change: while it ends inside a
    character, and during a run of byte tokens (`<0xE4>`), which decode as one.

    Source: the prefix and read offsets of text-generation-inference (Hugging Face), made exact for byte tokens.
    """

    def __init__(self, backend: tokenizers.Tokenizer, skip_special: bool = True):
        self._backend = backend
        self._skip = skip_special
        added = backend.get_added_tokens_decoder()
        self._special = {i for i, token in added.items() if token.special} if skip_special else set()
        self._runs = backend.decoder is not None and b"ByteFallback" in backend.decoder.__getstate__()
        self._window: list[int] = []  # the anchor, then what is not given out yet
        self._anchors = 0  # tokens of the window that are given out

    def push(self, id: int) -> str:
        """The text that this id completes; "" while it is not certain."""
        token = self._backend.id_to_token(id)
        if token is None or id in self._special:
            return ""
        self._window.append(id)
        if self._runs and BYTE_TOKEN.fullmatch(token):
            return ""
        text = self._pending()
        if text.endswith(BROKEN):
            return ""
        self._window = self._window[-1:]
        self._anchors = 1
        return text

    def flush(self) -> str:
        """What is left at the end, with U+FFFD for bytes that never became a character."""
        text = self._pending()
        self._window, self._anchors = [], 0
        return text

    def copy(self) -> "Detokenizer":
        """Another one that has come as far, and goes on by itself."""
        twin = copy.copy(self)
        twin._window = list(self._window)
        return twin

    def _pending(self) -> str:
        given = self._decode(self._window[: self._anchors])
        return self._decode(self._window)[len(given) :]

    def _decode(self, ids: list[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=self._skip) if ids else ""
