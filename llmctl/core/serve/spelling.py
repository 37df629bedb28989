"""Spelling: the text and the bytes of single tokens, for log-probabilities."""

import re
from functools import lru_cache

import orjson

from llmctl.core.text.patterns import byte_characters
from llmctl.core.text.tokenizer import Tokenizer

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "▁"  # what tokenizers of sentencepiece's kind write for a space


class Spelling:
    """What each token of a tokenizer stands for."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        decoder = orjson.dumps(orjson.loads(tokenizer.backend.to_str())["decoder"]).decode()
        self._bytes = {letter: byte for byte, letter in enumerate(byte_characters())} if "ByteLevel" in decoder else {}
        self._fallback = "ByteFallback" in decoder
        self._spaced = SPACE in decoder
        self._added = tokenizer.backend.get_added_tokens_decoder()
        self.bytes = lru_cache(1 << 16)(self._spelled)

    def text(self, id: int) -> str:
        """The text of a token; U+FFFD for bytes that are no whole character."""
        return self.bytes(id).decode("utf-8", "replace")

    def _spelled(self, id: int) -> bytes:
        token = self._tokenizer.token(id) or ""
        if id in self._added:
            return token.encode("utf-8", "replace")
        if self._bytes and all(letter in self._bytes for letter in token):
            return bytes(self._bytes[letter] for letter in token)
        if self._fallback and (found := BYTE.fullmatch(token)):
            return bytes.fromhex(found[1])
        if self._spaced:
            return token.replace(SPACE, " ").encode("utf-8", "replace")
        return self._tokenizer.decode([id], skip_special=False).encode("utf-8", "replace")
