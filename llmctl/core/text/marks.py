"""Marks: special tokens that a template wrote are told apart from those that someone typed, in one tokenization."""

import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import orjson
import tokenizers

from llmctl.core.text.tokenizer import USUAL, Tokenizer
from llmctl.errors import UserError

# Noncharacters, which Unicode keeps for use inside a program and out of texts. In a text they become U+FFFD.
TYPED = "\ufdd0"  # with the character after it: a special token that someone typed
MEANT = "\ufdd1"  # with the character after it: a special token that a template wrote
OPEN, CLOSE = "\ufdd2", "\ufdd3"  # around what is trained on
NONCHARACTERS = re.compile(f"[{TYPED}{MEANT}{OPEN}{CLOSE}]")
LAST = re.compile(f"({MEANT}.)\\s*\\Z", re.DOTALL)
FIRST = 0xF0000  # the private character that stands for special token 0 after a mark


class Marked(NamedTuple):
    """A text whose special tokens are marked, and the parts of it that are trained on.

    Attributes:
        text: where MEANT and a character after it stand for a special token; all else is as it was typed.
        spans: (start, stop) of each part, in characters of `text`.
    """

    text: str
    spans: tuple[tuple[int, int], ...]


class Pieces(NamedTuple):
    """The tokens of a marked text.

    Attributes:
        ids: (N,) int32.
        starts, stops: (N,) int64, the characters that each stands for; a token that stands for none has both the same.
    """

    ids: np.ndarray
    starts: np.ndarray
    stops: np.ndarray

    def within(self, spans: tuple[tuple[int, int], ...]) -> np.ndarray:
        """(N,) bool: tokens that reach into one of the spans; one that straddles where a span begins is in it.

        A token that stands for no character, such as the space that sentencepiece puts before a text, is where it is.
        """
        inside = np.zeros(len(self.ids), bool)
        empty = self.starts == self.stops
        for start, stop in spans:
            first, last = np.maximum(self.starts, start), np.minimum(self.stops, stop)
            inside |= np.where(empty, (self.starts >= start) & (self.starts < stop), first < last)
        return inside


class Marks:
    """The special tokens of a tokenizer, and a copy of it that finds them only where they are marked.

    A text is made in three steps: `hidden` takes the special tokens out of what others wrote, before a template sees
    it; `marked` marks those that the template wrote and puts the typed ones back; `encode` reads the whole text at
    once, as the tokenizer reads it, where a typed special token is text like any other.
    """

    def __init__(self, tokenizer: Tokenizer):
        parts = orjson.loads(tokenizer.backend.to_str())
        added = {one["content"] for one in parts["added_tokens"]}
        special = _special(tokenizer, parts)
        self.names: tuple[str, ...] = tuple(one["content"] for one in special)
        self.ids: dict[str, int] = {one["content"]: one["id"] for one in special}
        self._number = {name: chr(FIRST + at) for at, name in enumerate(self.names)}
        self._name = {letter: name for name, letter in self._number.items()}
        longest = sorted(self.names, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest)) or r"(?!)")
        self._any = re.compile(f"{TYPED}(?P<typed>.)|[{OPEN}{CLOSE}]|{self._special.pattern}", re.DOTALL)
        self.backend, self._ids = _reader(tokenizer, parts, self._number, added)

    def hidden(self, value: object) -> object:
        """The same with typed special tokens hidden, in strings however deep in lists and dicts."""
        if isinstance(value, str):
            text = NONCHARACTERS.sub("\ufffd", value)
            return self._special.sub(lambda found: TYPED + self._number[found[0]], text)
        if isinstance(value, dict):
            return {key: self.hidden(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hidden(one) for one in value]
        return value

    def shown(self, text: str) -> str:
        """A text with typed special tokens back, and without marks."""
        back = self._any.sub(lambda found: self._name[found["typed"]] if found["typed"] else found[0], text)
        return back.replace(OPEN, "").replace(CLOSE, "")

    def marked(self, text: str) -> Marked:
        """A text made of hidden ones, with OPEN and CLOSE around what is trained on."""
        made: list[str] = []
        spans: list[tuple[int, int]] = []
        length = at = opened = 0
        for found in self._any.finditer(text):
            made.append(text[at : found.start()])
            length += found.start() - at
            at = found.end()
            if found[0] == OPEN:
                opened = length
            elif found[0] == CLOSE:
                spans.append((opened, length))
            else:
                made.append(self._name[found["typed"]] if found["typed"] else MEANT + self._number[found[0]])
                length += len(made[-1])
        made.append(text[at:])
        whole = "".join(made)
        return Marked(whole, tuple(_ended(whole, *span) for span in spans))

    def end(self, marked: Marked) -> int | None:
        """The id of the special token with which the last trained part ends; None where it ends with another."""
        stop = marked.spans[-1][1] if marked.spans else 0
        return self.ids[self._name[marked.text[stop - 1]]] if marked.text[stop - 2 : stop - 1] == MEANT else None

    def text(self, marked: str) -> str:
        """A marked text as people read it."""
        return re.sub(f"{MEANT}(.)", lambda found: self._name[found[1]], marked, flags=re.DOTALL)

    def encode(self, texts: list[str]) -> list[Pieces]:
        """The tokens of marked texts, without what the tokenizer's post-processor puts around a text.

        Raises:
            UserError: half a surrogate pair, which has no UTF-8 form.
        """
        try:
            found = self.backend.encode_batch(texts, add_special_tokens=False)
        except TypeError as error:
            hint = "It was not valid UTF-8 where it came from: convert it with iconv."
            raise UserError("the text holds half a surrogate pair, so it is not UTF-8.", hint) from error
        return [self._pieces(one) for one in found]

    def _pieces(self, found: tokenizers.Encoding) -> Pieces:
        offsets = np.array(found.offsets, np.int64).reshape(-1, 2)
        return Pieces(self._ids[np.array(found.ids, np.int64)], offsets[:, 0], offsets[:, 1])


@lru_cache(maxsize=2)
def marks_of(tokenizer: Tokenizer) -> Marks:
    """The marks of a tokenizer, made once."""
    return Marks(tokenizer)


def _special(tokenizer: Tokenizer, parts: dict) -> list[dict]:
    """The special tokens, those among them that only tokenizer_config.json calls so; `parts` is told of these."""
    values = (tokenizer.config.get(f"{role}_token") for role in USUAL)
    roles = {value.get("content") if isinstance(value, dict) else value for value in values}
    known = {one["content"] for one in parts["added_tokens"]}
    for name in sorted(role for role in roles if isinstance(role, str) and role and role not in known):
        if (id := tokenizer.id(name)) is not None:
            plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            parts["added_tokens"].append({"id": id, "content": name, **plain, "special": True})
    return [one for one in parts["added_tokens"] if one["special"] or one["content"] in roles]


def _ended(text: str, start: int, stop: int) -> tuple[int, int]:
    """A trained part with the special token that ends it: no white space after that, and it itself where it follows."""
    if found := LAST.search(text, start, stop):
        return start, found.end(1)
    return start, stop + 2 if text.startswith(MEANT, stop) else stop


def _reader(
    tokenizer: Tokenizer, parts: dict, number: dict[str, str], added: set[str]
) -> tuple[tokenizers.Tokenizer, np.ndarray]:
    """A copy of the tokenizer that knows special tokens by their marks alone; and the ids of its ids.

    They are renamed in the model's vocabulary too, for one of sentencepiece's kind finds pieces anywhere in a word;
    but not those that are plain pieces or single letters, which texts could not be spelled without. Offsets are left
    as wide as the tokens: what trims them is a part of the post-processor, which is left out.
    """
    named = {name: MEANT + letter for name, letter in number.items()}
    model = parts["model"]
    kept = {name for name in named if len(name) == 1 or name not in added} | {model.get("unk_token")}
    renamed = {name: mark for name, mark in named.items() if name not in kept}
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed.get(token, token): id for token, id in model["vocab"].items()}
    else:
        model["vocab"] = [[renamed.get(token, token), score] for token, score in model["vocab"]]
    normalizer = tokenizer.backend.normalizer
    ids = {}
    for one in parts["added_tokens"]:
        ids[named.get(one["content"], one["content"])] = one["id"]
        if one["content"] in named:
            one["content"], one["special"] = named[one["content"]], False
            if normalizer is not None and normalizer.normalize_str(one["content"]) != one["content"]:
                one["normalized"] = False
    backend = tokenizers.Tokenizer.from_str(orjson.dumps({**parts, "post_processor": None}).decode())
    backend.no_truncation()
    backend.no_padding()
    size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    table = np.arange(size, dtype=np.int32)
    for token, i in ids.items():
        table[backend.token_to_id(token)] = i
    return backend, table
