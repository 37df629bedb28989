"""Bulk encoding: many documents to one array of ids, by the fastest engine that gives the tokenizer's own ids."""

import re
import unicodedata
from collections.abc import Callable
from itertools import chain
from typing import Protocol

import numpy as np
import orjson
import tiktoken
import tokenizers

from llmctl.core.text.patterns import PATTERNS, Words, byte_characters
from llmctl.core.text.tokenizer import Tokenizer, token_dtype

BORDER = "\ufdd0"  # between documents for tiktoken: a code point that is no character; a text with it goes another way

# Letters and digits of Unicode 5 to 16, spaces and marks: engines of another Unicode version cut some otherwise.
PROBE = (
    "It's we'LL I'M '\u017f 12345 \u0663\u0664\u0665 x\u00b2  \t\n\r\n  y\u00a0z\u3000\u2028\x85\x1c\u180e_!?...\r\n\n "
    "na\u00efve \u65e5\u672c\u8a9e \ud55c\uad6d \U0001f469\u200d\U0001f467 e\u0301 a\u0cf1b \u0527c \u08a0d \ua7aee "
    "\u08b3f \u08e2g \u0860h \u0560i \u0eb8j \u08bek \u0870l \U00011f04m \U0002ebf0n \u1c89o \U0001e950 \U00010d40 "
    "\U0001fbf0 \U00011f50 \U000323af \U00031350 end  "
)


class Engine(Protocol):
    """Encodes documents in bulk; safe to call from several threads.

    Attributes:
        name: of the library, or "table".
        parallel: whether it uses several threads by itself.
    """

    name: str
    parallel: bool

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """(N,) ids of all texts, each ended by eos, in `token_dtype`; (texts,) int64 where each ends."""
        ...


def engine(tokenizer: Tokenizer, eos: int) -> Engine:
    """The fastest engine whose ids are those of `tokenizer.encode` for every text.

    Args:
        eos: id that ends each document.
    """
    found = next((e for make in (_table, _tiktoken) if (e := make(tokenizer, eos)) is not None), None)
    return found or Library(tokenizer, eos)


class Library:
    """The `tokenizers` library itself: any tokenizer, and what the others are measured against."""

    name = "tokenizers"
    parallel = True

    def __init__(self, tokenizer: Tokenizer, eos: int):
        self._backend = tokenizer.backend
        self._eos = eos
        self._dtype = token_dtype(tokenizer.size)

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """As Engine.encode."""
        rows = [e.ids for e in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        ends = np.cumsum([len(row) + 1 for row in rows], dtype=np.int64)
        end = (self._eos,)
        count = int(ends[-1]) if rows else 0
        ids = np.fromiter(chain.from_iterable(chain(row, end) for row in rows), self._dtype, count)
        return ids, ends


class Table:
    """One id for each unit of text (byte or character): a lookup."""

    name = "table"
    parallel = False

    def __init__(self, units: Callable[[str], np.ndarray], ids: np.ndarray, eos: int):
        self._units = units
        self._ids = ids
        self._eos = np.array([eos], ids.dtype)

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """As Engine.encode."""
        rows = [self._ids[self._units(text)] for text in texts]
        ends = np.cumsum([len(row) + 1 for row in rows], dtype=np.int64)
        return np.concatenate([part for row in rows for part in (row, self._eos)] or [self._ids[:0]]), ends


class Tiktoken:
    """Byte-level BPE by tiktoken: all documents in one call, joined by a border that comes back as eos.

    A text with what tiktoken would treat otherwise (`odd`) goes through the tokenizers library.
    """

    name = "tiktoken"
    parallel = False

    def __init__(self, encoding: tiktoken.Encoding, ids: np.ndarray, odd: Callable[[str], bool], library: Library):
        self._encoding = encoding
        self._ids = ids  # (ranks + 1,) the tokenizer's id of each rank; the last is the border's, eos
        self._odd = odd
        self._library = library

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """As Engine.encode."""
        odd = [i for i, text in enumerate(texts) if self._odd(text)]
        if not odd:
            return self._even(texts)
        others = set(odd)
        even_ids, even_ends = self._even([text for i, text in enumerate(texts) if i not in others])
        odd_ids, odd_ends = self._library.encode([texts[i] for i in odd])
        even, strange = iter(np.split(even_ids, even_ends[:-1])), iter(np.split(odd_ids, odd_ends[:-1]))
        rows = [next(strange if i in others else even) for i in range(len(texts))]
        return np.concatenate(rows), np.cumsum([len(row) for row in rows])

    def _even(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        if not texts:
            return self._ids[:0], np.zeros(0, np.int64)
        joined = BORDER.join([*texts, ""])
        try:
            ranks = self._encoding.encode_to_numpy(joined, allowed_special={BORDER}, disallowed_special=())
        except ValueError:  # its regex engine gives up on white space of some 500,000 characters
            return self._library.encode(texts)
        return self._ids[ranks], np.flatnonzero(ranks == len(self._ids) - 1) + 1


def _table(tokenizer: Tokenizer, eos: int) -> Table | None:
    """A table for BPE without merges: of bytes, or of characters."""
    parts = orjson.loads(tokenizer.backend.to_str())
    model = parts["model"]
    common = any(not token["special"] for token in parts["added_tokens"])
    if model["type"] != "BPE" or model["merges"] or model["ignore_merges"] or parts["normalizer"] or common:
        return None
    vocab, dtype = model["vocab"], token_dtype(tokenizer.size)
    before = parts["pre_tokenizer"]
    if before is None and model["unk_token"] and not model["byte_fallback"] and not model["fuse_unk"]:
        characters = np.full(0x110000, vocab[model["unk_token"]], dtype)
        single = {ord(token): id for token, id in vocab.items() if len(token) == 1}
        characters[list(single)] = list(single.values())
        return Table(lambda text: np.frombuffer(text.encode("utf-32-le"), "<u4"), characters, eos)
    letters = byte_characters()
    if before and before["type"] == "ByteLevel" and not before["add_prefix_space"] and set(letters) <= set(vocab):
        return Table(lambda text: np.frombuffer(text.encode(), "u1"), np.array([vocab[c] for c in letters], dtype), eos)
    return None


def _tiktoken(tokenizer: Tokenizer, eos: int) -> Tiktoken | None:
    """tiktoken with the tokenizer's merges, where it provably gives the same ids; else None.

    The words must be cut by a known pattern, the normalizer be none or NFC (which most text is already), and
    the merges be as `_ranks` asks. A probe of both engines then guards against what this reasoning missed.
    """
    parts = orjson.loads(tokenizer.backend.to_str())
    words, normal = _words(parts["pre_tokenizer"]), _normal(parts["normalizer"])
    ranks = _ranks(parts["model"]) if words and normal is not None else None
    if ranks is None:
        return None
    typed = [token["content"] for token in parts["added_tokens"] if not token["special"]]
    listed = re.compile("|".join(map(re.escape, typed))) if typed else None

    def odd(text: str) -> bool:
        if listed is not None and listed.search(text):
            return True
        return not text.isascii() and (
            BORDER in text or (normal == "NFC" and not unicodedata.is_normalized("NFC", text))
        )

    places = {token: rank for rank, token in enumerate(ranks)}
    try:
        encoding = tiktoken.Encoding(
            "llmctl", pat_str=words.fast, mergeable_ranks=places, special_tokens={BORDER: len(ranks)}
        )
    except ValueError:
        return None
    library = Library(tokenizer, eos)
    found = Tiktoken(encoding, np.array([*ranks.values(), eos], token_dtype(tokenizer.size)), odd, library)
    samples = [PROBE, "", *PROBE.split(), PROBE.replace(" ", "   ")]
    same = all(np.array_equal(a, b) for a, b in zip(found.encode(samples), library.encode(samples), strict=True))
    return found if same else None


def _words(before: dict | None) -> Words | None:
    """The known pattern that a pre-tokenizer cuts by, before bytes."""
    steps = [] if before is None else before["pretokenizers"] if before["type"] == "Sequence" else [before]
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    by_itself = steps[-1].get("use_regex", True)
    if len(steps) == 1:
        return PATTERNS["gpt2"] if by_itself else None
    if len(steps) > 2 or by_itself or steps[0]["type"] != "Split":
        return None
    whole = (steps[0]["behavior"], steps[0]["invert"]) in (("Isolated", False), ("Isolated", True), ("Removed", True))
    pattern = steps[0]["pattern"].get("Regex")
    return next((words for words in PATTERNS.values() if whole and words.pattern == pattern), None)


def _normal(normalizer: dict | None) -> str | None:
    """ "" for no normalizer, "NFC", or None for any other."""
    steps = (
        [] if normalizer is None else normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    )
    names = {step["type"] for step in steps}
    return "" if not names else "NFC" if names == {"NFC"} else None


def _ranks(model: dict) -> dict[bytes, int] | None:
    """The tokens in the order in which tiktoken must merge them, each with its id; None where the two would differ.

    The library merges listed pairs, the earliest in the list first; tiktoken merges any two neighbours that make
    up a token, that of the lowest rank first. They agree if (1) pairs that make the same token stand together
    in the list and after those that make their halves, so that both merge in the order of ranks; and (2) a token
    here is what the library makes of its own bytes. For when tiktoken joins x and y to the token xy, nothing was
    merged across their outer borders, so the library, given the bytes of xy alone, would have come to x y as well,
    and by (2) have joined them. Tokens that no merge makes are found whole only (ignore_merges), and must fall in
    three parts or more, so that no two neighbours make one up; without ignore_merges they do not occur.
    """
    if model["type"] != "BPE" or model["dropout"] or model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        return None
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    vocab: dict[str, int] = model["vocab"]
    order = dict.fromkeys(byte_of)  # tokens as the vocabulary writes them, in order of rank
    last = None
    for pair in model["merges"]:
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        made = left + right
        if left not in order or right not in order or (made in order and made != last):
            return None
        order[made] = None
        last = made
    if not set(order) <= set(vocab):
        return None
    bare = tokenizers.Tokenizer.from_str(orjson.dumps(_alone(model)).decode())
    extra = [token for token in vocab if token not in order] if model["ignore_merges"] else []
    spelled = [token for token in chain(order, extra) if all(character in byte_of for character in token)]
    pieces = bare.encode_batch_fast(spelled, add_special_tokens=False)
    parts = {token: piece.ids for token, piece in zip(spelled, pieces, strict=True)}
    whole = [token for token in order if parts[token] == [vocab[token]]]
    never = [token for token in spelled if parts[token] != [vocab[token]]]
    if model["ignore_merges"]:
        if any(len(parts[token]) < 3 for token in never):
            return None
        whole += never
    return {bytes(byte_of[character] for character in token): vocab[token] for token in whole}


def _alone(model: dict) -> dict:
    """A tokenizer.json of the model alone, which merges by its list only."""
    bare = {**model, "ignore_merges": False}
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0", "added_tokens": [], **empty, "model": bare}
