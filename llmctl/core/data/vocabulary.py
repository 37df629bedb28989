"""Vocabulary: what corrupting text needs to know of a tokenizer: its special ids, and what each token is made of."""

import unicodedata
from dataclasses import dataclass

import numpy as np
import orjson

from llmctl.core.text.patterns import byte_characters
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.model import Kind
from llmctl.spec.noise import Objective

# How families spell the marks of a prefix, a middle and a suffix: Qwen and Gemma, StarCoder, SantaCoder, Code Llama,
# the plain form of it, DeepSeek.
FIM = (
    ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
    ("<fim_prefix>", "<fim_middle>", "<fim_suffix>"),
    ("<fim-prefix>", "<fim-middle>", "<fim-suffix>"),
    ("\u2581<PRE>", "\u2581<MID>", "\u2581<SUF>"),
    ("<PRE>", "<MID>", "<SUF>"),
    ("<\uff5cfim\u2581begin\uff5c>", "<\uff5cfim\u2581end\uff5c>", "<\uff5cfim\u2581hole\uff5c>"),
)
STOPS = (".", "!", "?", "\u2026", "\u3002", "\uff01", "\uff1f")
CLOSERS = "\"')]}\u00bb\u201d\u2019"  # what may follow a full stop within its sentence
SPACE = "\u2581"  # how sentencepiece writes a space

_TRAIN = "llmctl train-tokenizer TEXT -o DIR"
_THEN = "then llmctl tokenize TEXT --tokenizer DIR"


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Ids of a tokenizer by what they are for, None where it has no such token; and arrays over all V ids.

    Attributes:
        mask, cls, sep, bos, eos, pad: ids.
        sentinels: of <extra_id_0>, <extra_id_1>, ...; () where there are none.
        fim: of the marks of prefix, middle and suffix.
        special: (V,) bool, ids that are not text: special tokens, and rows that no token has.
        ordinary: (O,) int64, the others.
        begins_word: (V,) bool, tokens with which a word begins wherever they stand.
        ends_word: (V,) bool, tokens after which a word begins whatever follows.
        ends_sentence: (V,) bool, tokens that end with a full stop, or with one and what closes a quotation.
        frame: what an encoder meets before and after a text (`Tokenizer.frame`); None: by the roles above.
    """

    mask: int | None
    cls: int | None
    sep: int | None
    bos: int | None
    eos: int | None
    pad: int | None
    sentinels: tuple[int, ...]
    fim: tuple[int, int, int] | None
    special: np.ndarray
    ordinary: np.ndarray
    begins_word: np.ndarray
    ends_word: np.ndarray
    ends_sentence: np.ndarray
    frame: tuple[int | None, int | None] | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, size: int | None = None) -> "Vocabulary":
        """That of a tokenizer, for a model with `size` rows of embeddings, which may be more than it has tokens."""
        size = tokenizer.size if size is None else size
        special = np.ones(size, bool)
        begins, ends, stops = np.ones(size, bool), np.zeros(size, bool), np.zeros(size, bool)
        spelling = _Spelling(tokenizer)
        for token, id in tokenizer.backend.get_vocab(with_added_tokens=True).items():
            if id < size and id not in tokenizer.special_ids:
                special[id] = False
                begins[id], ends[id], stops[id] = spelling.marks(token)
        names = (f"<extra_id_{number}>" for number in range(tokenizer.size))
        sentinels = []
        while (id := tokenizer.id(next(names, ""))) is not None:
            sentinels.append(id)
        marks = (tuple(tokenizer.id(token) for token in spelled) for spelled in FIM)
        before, after = tokenizer.frame
        return cls(
            **{role: getattr(tokenizer, role) for role in ("mask", "cls", "sep", "bos", "eos", "pad")},
            sentinels=tuple(sentinels),
            fim=next((found for found in marks if None not in found), None),
            special=special,
            ordinary=np.flatnonzero(~special),
            begins_word=begins,
            ends_word=ends,
            ends_sentence=stops,
            frame=(before[-1] if before else None, after[0] if after else None),
        )

    @property
    def opening(self) -> int | None:
        """What a text begins with for an encoder."""
        if self.frame is not None:
            return self.frame[0]
        return self.bos if self.cls is None else self.cls

    @property
    def closing(self) -> int | None:
        """What a text ends with for an encoder; there is such a token even where the tokenizer puts none."""
        if self.frame is not None and self.frame[1] is not None:
            return self.frame[1]
        return self.eos if self.sep is None else self.sep

    def need(self, objective: Objective) -> None:
        """Checks that the tokenizer has the special tokens that an objective puts into texts.

        Raises:
            UserError: it lacks one.
        """
        lacks = {
            "mlm": ("mask token", self.mask is None, "--roles bert, or --roles roberta"),
            "mlm+nsp": ("mask token", self.mask is None, "--roles bert"),
            "denoise": ("mask token", self.mask is None, "--roles roberta, whose special tokens are BART's too"),
            "span": ("sentinels <extra_id_0>, <extra_id_1>, ...", not self.sentinels, "--roles t5"),
            "fim": ("tokens for prefix, middle and suffix", self.fim is None, _repeated(FIM[0])),
        }
        what, missing, option = lacks.get(objective, ("", False, ""))
        if missing:
            problem = f"--objective {objective} needs a tokenizer with {_a(what)}, and that of the tokens has none."
            raise UserError(problem, f"{_TRAIN} {option}; {_THEN}.", Exit.MISMATCH)

    def least(self, objective: Objective, kind: Kind) -> int:
        """Tokens of the shortest row that asks for anything: those around a text, and those that must be in it."""
        if kind == "decoder":
            return 2
        text = {"mlm": 1, "mlm+nsp": 3, "denoise": 1}.get(objective, 2)
        return 1 + (self.opening is not None) + text

    def words(self, ids: np.ndarray) -> np.ndarray:
        """(N,) int64: the number of the word that each of these ids is in, rising from 1."""
        begins = self.begins_word[ids]
        begins[1:] |= self.ends_word[ids[:-1]]
        begins[:1] = True
        return np.cumsum(begins)


class _Spelling:
    """How a tokenizer writes words and bytes."""

    def __init__(self, tokenizer: Tokenizer):
        parts = orjson.loads(tokenizer.backend.to_str())
        model = parts["model"]
        self.inside = model.get("continuing_subword_prefix") if model["type"] == "WordPiece" else None
        self.whole = model["type"] == "WordLevel"
        steps = orjson.dumps([parts["pre_tokenizer"], parts["decoder"]])
        bytes_of = dict(zip(byte_characters(), range(256), strict=True))
        self.bytes_of = bytes_of if b'"ByteLevel"' in steps else None

    def marks(self, token: str) -> tuple[bool, bool, bool]:
        """Whether it begins a word, ends one, and ends a sentence."""
        text = self._text(token)
        stops = text.strip().rstrip(CLOSERS).endswith(STOPS)
        if self.whole:
            return True, True, stops
        if self.inside is not None:
            return not token.startswith(self.inside), False, stops
        if not text:
            return False, False, False
        last = text[-1]
        return not _in_word(text[0]), not (_in_word(last) or last == " "), stops

    def _text(self, token: str) -> str:
        """The token as it looks in a text; bytes that are no character alone come as U+FFFD."""
        if self.bytes_of is not None:
            if all(character in self.bytes_of for character in token):
                return bytes(self.bytes_of[character] for character in token).decode("utf-8", errors="replace")
            return token
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            value = int(token[3:5], 16)
            return chr(value) if value < 128 else "\ufffd"
        return token.replace(SPACE, " ")


def _in_word(character: str) -> bool:
    """Letters, digits, marks on them, and bytes that are part of a character."""
    return character.isalnum() or character in "_\ufffd" or unicodedata.category(character).startswith("M")


def _repeated(tokens: tuple[str, ...]) -> str:
    return " ".join(f"--special '{token}'" for token in tokens)


def _a(what: str) -> str:
    return f"a {what}" if what.endswith("token") else what
