"""Options of data: how texts are read, how a tokenizer is trained, how documents become splits of tokens."""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal

from llmctl.errors import Exit, UserError

Algorithm = Literal["bpe", "wordpiece", "unigram", "word", "char", "byte"]
Normalize = Literal["none", "nfc", "nfkc", "lower"]
Words = Literal["gpt2", "llama3", "qwen2"]
Roles = Literal["gpt", "bert", "roberta", "t5"]
Format = Literal["auto", "text", "jsonl", "csv", "tsv", "parquet"]
Documents = Literal["auto", "file", "line"]
Errors = Literal["strict", "replace"]
Corpus = Literal["docs", "source", "summaries"]
Half = Literal["train", "test"]

# Tokens when --vocab-size is not given; None: as many as the text needs.
VOCAB_SIZES: dict[Algorithm, int | None] = {
    "bpe": 4096,
    "wordpiece": 4096,
    "unigram": 4096,
    "word": 16384,
    "char": None,
    "byte": None,
}

# Special tokens of a family: a role in tokenizer_config.json, and its token, in the order of ids. BART's are RoBERTa's.
ROLES: dict[Roles, dict[str, str]] = {
    "gpt": {"unk": "<unk>", "bos": "<|endoftext|>", "eos": "<|endoftext|>"},
    "bert": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "roberta": {
        **{"bos": "<s>", "cls": "<s>", "pad": "<pad>", "eos": "</s>", "sep": "</s>"},
        **{"unk": "<unk>", "mask": "<mask>"},
    },
    "t5": {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
}

# What stands around a text, and around two, for a model that reads them whole; None: nothing.
TEMPLATES: dict[Roles, tuple[str, str] | None] = {
    "gpt": None,
    "bert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "roberta": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
    "t5": ("$A </s>", "$A </s> $B </s>"),
}
SENTINELS = 100  # of T5: <extra_id_0>, which has the last id, to <extra_id_99>

BYTES = 256  # every byte is a token of these, so nothing is ever unknown
WITH_BYTES = ("bpe", "unigram", "byte")


@dataclass(frozen=True)
class TokenizerConfig:
    """Training of the tokenizer.

    Raises:
        UserError: a value out of range, or a vocabulary too small for the bytes it must hold.
    """

    algorithm: Annotated[Algorithm, "How text is cut into tokens; bpe and byte give every text back exactly."] = "bpe"
    vocab_size: Annotated[int | None, "Tokens, special ones included. Default: 4096; word 16384; char all."] = None
    special: Annotated[tuple[str, ...], "A further special token, such as <|im_start|>; repeatable."] = ()
    min_frequency: Annotated[int, "Leave out what is seen less often (unigram and byte: no effect)."] = 2
    normalize: Annotated[Normalize, "Change the text before it is cut; all but none lose something."] = "none"
    words: Annotated[Words, "bpe and unigram: how text is cut into words, which no token spans."] = "gpt2"
    roles: Annotated[
        Roles | None,
        "Whose special tokens; roberta's are BART's too, t5 has the sentinels of span. Default: gpt; wordpiece bert.",
    ] = None

    def __post_init__(self) -> None:
        if self.min_frequency < 0:
            raise UserError(f"--min-frequency is {self.min_frequency}, wanted 0 or more.", "0 keeps all.", Exit.USAGE)
        names = self.specials
        if "" in names or len(set(names)) < len(names):
            twice = next(name for name in names if not name or names.count(name) > 1)
            raise UserError(f"--special {twice!r} is empty or there already.", "Leave it out.", Exit.USAGE)
        least = len(names) + (BYTES if self.algorithm in WITH_BYTES else 1)
        if self.algorithm == "byte" and self.vocab_size not in (None, least):
            raise UserError(
                f"--algorithm byte has {least} tokens, but --vocab-size is {self.vocab_size}.",
                "Leave --vocab-size out.",
                Exit.USAGE,
            )
        if self.vocab_size is not None and self.vocab_size < least:
            raise UserError(
                f"--vocab-size is {self.vocab_size}, but --algorithm {self.algorithm} needs at least {least}.",
                f"{len(names)} special tokens and the alphabet come first.",
                Exit.USAGE,
            )

    @property
    def family(self) -> Roles:
        """Whose special tokens it has."""
        return self.roles or ("bert" if self.algorithm == "wordpiece" else "gpt")

    @property
    def roles_of(self) -> dict[str, str]:
        """Each role and its token; where bytes are the alphabet, GPT's tokenizers know everything."""
        known = self.family == "gpt" and self.algorithm in ("bpe", "byte")
        return {role: token for role, token in ROLES[self.family].items() if not (known and role == "unk")}

    @property
    def first(self) -> list[str]:
        """Special tokens with the first ids: all that have a role, but of GPT's only the unknown."""
        gpt = self.family == "gpt"
        return [*dict.fromkeys(token for role, token in self.roles_of.items() if not gpt or role == "unk")]

    @property
    def last(self) -> list[str]:
        """Special tokens with the last ids: those of --special among them, T5's sentinels after them."""
        end = [self.roles_of["eos"]] if self.family == "gpt" else []
        return [*end, *self.special, *self.sentinels]

    @property
    def sentinels(self) -> list[str]:
        """T5's, in the order of ids: <extra_id_99> first."""
        return [f"<extra_id_{number}>" for number in reversed(range(SENTINELS if self.family == "t5" else 0))]

    @property
    def specials(self) -> list[str]:
        """Every special token once, in the order of ids."""
        return [*self.first, *self.last]

    @property
    def size(self) -> int | None:
        """Tokens wanted; None: as many as the text needs."""
        return VOCAB_SIZES[self.algorithm] if self.vocab_size is None else self.vocab_size


@dataclass(frozen=True)
class Reading:
    """Input.

    Raises:
        UserError: a value out of range.
    """

    field: Annotated[str, "Field or column that holds the text, in JSON lines, CSV and parquet."] = "text"
    format: Annotated[Format, "Format of the files; auto looks at name and content."] = "auto"
    documents: Annotated[
        Documents, "Plain text: a document each file or line; auto: long files cut at blank lines, 8 KiB or so each."
    ] = "auto"
    errors: Annotated[Errors, "Bytes that are not UTF-8: stop there, or put U+FFFD in their place."] = "strict"
    limit: Annotated[int | None, "Read no more than so many documents."] = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UserError(f"--limit is {self.limit}, wanted 1 or more.", "Leave it out to read all.", Exit.USAGE)


@dataclass(frozen=True)
class Sharding:
    """Shards.

    Raises:
        UserError: a value out of range.
    """

    held_out: Annotated[float, "Share of the documents kept for evaluation, chosen by a hash of their text."] = 0.01
    shard_tokens: Annotated[int, "Begin a new file after so many tokens."] = 100_000_000

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise UserError(
                f"--held-out is {self.held_out}, wanted 0 or more and less than 1.", "0.01 is 1 %.", Exit.USAGE
            )
        if self.shard_tokens < 1:
            raise UserError(f"--shard-tokens is {self.shard_tokens}, wanted 1 or more.", "1e8 is usual.", Exit.USAGE)

    def split(self, text: bytes) -> str:
        """ "train" or "heldout": decided by a hash of the document's UTF-8 bytes alone.

        So the same document is never in both, whatever the order or number of the files.
        """
        hashed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")
        return "heldout" if hashed < self.held_out * 2**64 else "train"
