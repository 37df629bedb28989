"""Tokenizer: text to ids and back, of the files that travel with a checkpoint (tokenizer.json is the truth)."""

import hashlib
import json
import shutil
from functools import cached_property
from pathlib import Path

import numpy as np
import orjson
import tokenizers

from llmctl.core.text.older import read_older
from llmctl.core.text.stream import Detokenizer
from llmctl.errors import UserError

SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")  # of Llama, of T5, of XLM-R
# The files of a tokenizer that a checkpoint carries from stage to stage, unchanged.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    *SENTENCEPIECE,
    "chat_template.jinja",
)

AGAIN = "It is cut short or of another kind; save or fetch it again, or train one: llmctl train-tokenizer TEXT -o DIR"

# Names that mark a role when no tokenizer_config.json or special_tokens_map.json says so.
USUAL = {
    "bos": ("<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "<|endoftext|>"),
    "eos": ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<|eot_id|>"),
    "pad": ("<pad>", "[PAD]", "<|pad|>"),
    "unk": ("<unk>", "[UNK]"),
    "sep": ("[SEP]",),
    "cls": ("[CLS]",),
    "mask": ("[MASK]", "<mask>"),
}


class Tokenizer:
    """A tokenizer of the `tokenizers` library with its special tokens named.

    Attributes:
        backend: the library's object; its truncation and padding are off, and it reads special tokens that
            are typed in a text as plain text.
        config: contents of tokenizer_config.json, {} when there is none.
        bos, eos, pad, unk, sep, cls, mask: ids, None when the tokenizer has no such token. Where no eos is
            named, eos is sep, the token that ends a text of BERT's kind.
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: dict, source: Path | None = None):
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True  # typed special tokens are text; not saved in tokenizer.json
        self.backend = backend
        self.config = config
        self.source = source
        ids = {role: self._role(role) for role in USUAL}
        self.bos, self.pad, self.unk = ids["bos"], ids["pad"], ids["unk"]
        self.sep, self.cls, self.mask = ids["sep"], ids["cls"], ids["mask"]
        self.eos = ids["eos"] if ids["eos"] is not None else ids["sep"]

    @classmethod
    def open(cls, path: Path | str) -> "Tokenizer":
        """The tokenizer of a checkpoint, a token directory, or a tokenizer.json.

        Raises:
            UserError: no tokenizer there, or one that cannot be read.
        """
        path = Path(path)
        directory = path if path.is_dir() else path.parent
        file = directory / "tokenizer.json" if path.is_dir() else path
        if file.is_file():
            backend = _read_backend(file)
        elif path.is_dir() and (older := read_older(path, *_settings(path))) is not None:
            backend, roles = older
            return cls(backend, {**roles, **_settings(path)[0]}, path)
        elif not path.exists():
            raise UserError(f"there is no tokenizer at {path}.", "Name a directory that holds tokenizer.json.")
        elif any((directory / name).is_file() for name in SENTENCEPIECE):
            raise UserError(
                f"{directory} holds only a sentencepiece model, which llmctl does not read.",
                "Save it as tokenizer.json with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR).",
            )
        else:
            raise UserError(f"{directory} has no tokenizer.json.", "Name a directory that holds one.")
        if path.is_file() and path.name != "tokenizer.json":
            return cls(backend, {})  # what lies beside it may be of another tokenizer
        return cls(backend, _settings(directory)[0], directory)

    def save(self, directory: Path) -> None:
        """Writes the tokenizer's files into an existing directory: those it was opened from, unchanged, or new ones."""
        kept = [] if self.source is None else [f for f in TOKENIZER_FILES if (self.source / f).is_file()]
        for name in kept:
            shutil.copyfile(self.source / name, directory / name)
        if "tokenizer.json" not in kept:
            (directory / "tokenizer.json").write_text(self.backend.to_str(pretty=True) + "\n", encoding="utf-8")
        if self.source is None:
            config = self.config or self._described()
            names = {role: value for role, value in config.items() if role.endswith("_token")}
            _write_object(directory / "tokenizer_config.json", config)
            _write_object(directory / "special_tokens_map.json", names)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text, without BOS or EOS.

        Args:
            text: any text, the empty one too.
            special: read special tokens that are typed in the text ("<|endoftext|>") as such: for text that
                a template of ours has rendered. False keeps them plain text, as untrusted text wants.

        Raises:
            UserError: half a surrogate pair, which has no UTF-8 form.
        """
        return self.encode_batch([text], special)[0]

    def encode_batch(self, texts: list[str], special: bool = False) -> list[list[int]]:
        """Ids of many texts, as `encode` gives them one by one."""
        backend = self._trusting if special else self.backend
        try:
            return [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError as error:
            hint = "It was not valid UTF-8 where it came from: convert it with iconv."
            raise UserError("the text holds half a surrogate pair, so it is not UTF-8.", hint) from error

    def decode(self, ids: list[int], skip_special: bool = True) -> str:
        """The text of ids; ids that the tokenizer does not know are left out."""
        return self.backend.decode(ids, skip_special_tokens=skip_special)

    def stream(self, skip_special: bool = True) -> Detokenizer:
        """A detokenizer that takes one id at a time and never gives half a character."""
        return Detokenizer(self.backend, skip_special)

    def token(self, id: int) -> str | None:
        """The token of an id as the vocabulary spells it."""
        return self.backend.id_to_token(id)

    def id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it."""
        return self.backend.token_to_id(token)

    @cached_property
    def size(self) -> int:
        """Rows that an embedding needs: the largest id, plus one."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def begins(self) -> bool:
        """Whether the tokenizer's own post-processor puts BOS before a text."""
        return self.bos is not None and self.backend.encode("a").ids[:1] == [self.bos]

    @cached_property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What an encoder meets before and after a text: [CLS] and [SEP], <s> and </s>, nothing and </s>.

        It is what the tokenizer's own post-processor puts there, or if that puts nothing, by the roles of its tokens.
        """
        whole = self.backend.encode("a")
        marks = whole.special_tokens_mask
        first = marks.index(0) if 0 in marks else len(marks) // 2  # there may be no token for "a"
        last = first + marks.count(0)
        if len(marks) > marks.count(0):
            return tuple(whole.ids[:first]), tuple(whole.ids[last:])
        opening = self.bos if self.cls is None else self.cls
        closing = self.eos if self.sep is None else self.sep
        return (() if opening is None else (opening,)), (() if closing is None else (closing,))

    @cached_property
    def sha256(self) -> str:
        """A hash of what decides the ids of a text, the same however the file is spelled or formatted."""
        parts = orjson.loads(self.backend.to_str())
        deciding = {part: _bare(parts[part]) for part in ("model", "added_tokens", "normalizer", "pre_tokenizer")}
        return hashlib.sha256(orjson.dumps(deciding, option=orjson.OPT_SORT_KEYS)).hexdigest()

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens, which `decode` skips."""
        return frozenset(i for i, token in self.backend.get_added_tokens_decoder().items() if token.special)

    @cached_property
    def _trusting(self) -> tokenizers.Tokenizer:
        return tokenizers.Tokenizer.from_str(self.backend.to_str())

    def _described(self) -> dict:
        """A tokenizer_config.json for a tokenizer that came without one."""
        ids = {role: getattr(self, role) for role in USUAL}
        names = {f"{role}_token": self.token(id) for role, id in ids.items() if id is not None}
        return {"tokenizer_class": "PreTrainedTokenizerFast", **names, "clean_up_tokenization_spaces": False}

    def _role(self, role: str) -> int | None:
        """The id of a special token by what the config says or, if it says nothing of any role, by its usual names."""
        value = self.config.get(f"{role}_token")
        if isinstance(value, dict):
            value = value.get("content")
        named = any(f"{role}_token" in self.config for role in USUAL)
        names = (value,) if isinstance(value, str) else () if named else USUAL[role]
        return next((i for i in map(self.backend.token_to_id, names) if i is not None), None)


def token_dtype(vocab: int) -> np.dtype:
    """The dtype that stores ids of a vocabulary: little-endian uint16 up to 65,536 tokens, else uint32."""
    return np.dtype("<u2" if vocab <= 65536 else "<u4")


def _read_backend(file: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        has_model = isinstance(_read_object(file).get("model"), dict)
        problem = f"{error}" if has_model else "it has no model"
        raise UserError(f"{file} is not a tokenizer: {problem}.", AGAIN) from error


def _settings(directory: Path) -> tuple[dict, dict]:
    """What the files beside a vocabulary say: of special tokens and options, and added_tokens.json."""
    config = _read_object(directory / "special_tokens_map.json")
    config.update(_read_object(directory / "tokenizer_config.json"))
    return config, _read_object(directory / "added_tokens.json")


def _read_object(file: Path) -> dict:
    """A JSON object; {} when the file does not exist."""
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON: {error}.", AGAIN) from error
    if not isinstance(value, dict):
        raise UserError(f"{file} holds {type(value).__name__}, not a JSON object.", AGAIN)
    return value


def _bare(part: object) -> object:
    """A part of tokenizer.json without the settings that are off, which versions of the library spell or leave out."""
    if isinstance(part, dict):
        return {
            key: _bare(value) if key != "vocab" else value for key, value in part.items() if value not in (None, False)
        }
    return part


def _write_object(file: Path, value: dict) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
