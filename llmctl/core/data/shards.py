"""Shards: tokens on disk, flat little-endian ids with the ends of documents beside them, as datatrove lays them out."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llmctl.core.text.tokenizer import Tokenizer, token_dtype
from llmctl.errors import Exit, UserError
from llmctl.spec.tokens import TOKENS, read_about

SCHEMA = "llmctl-tokens/1"


class ShardWriter:
    """Writes one split: SPLIT-00000.ds, .ds.index, SPLIT-00001.ds, ... cut between documents.

    `.ds` holds ids, `.ds.index` the end of each document in that file, in tokens, as little-endian uint64.

    Args:
        directory: where the files go; it exists.
        split: first part of the files' names.
        dtype: of the ids on disk, see `token_dtype`.
        shard_tokens: a file ends with the first document that reaches so many tokens.
    """

    def __init__(self, directory: Path, split: str, dtype: np.dtype, shard_tokens: int = 100_000_000):
        self.directory = directory
        self.split = split
        self.dtype = dtype
        self.shard_tokens = shard_tokens
        self.shards: list[dict] = []  # {"file", "tokens", "documents"} of each file
        self.bytes = 0
        self._tokens_file = None
        self._index_file = None

    def write(self, ids: np.ndarray, ends: np.ndarray, text_bytes: int) -> None:
        """Appends documents.

        Args:
            ids: (N,) of any integer dtype, the documents one after another, each with its eos.
            ends: (documents,) where each ends in ids; the last is N.
            text_bytes: UTF-8 bytes of the documents' text.
        """
        self.bytes += text_bytes
        ids, ends = ids.astype(self.dtype, copy=False), ends.astype("<u8")
        start = 0
        while len(ends):
            if self._tokens_file is None:
                self._begin()
            shard = self.shards[-1]
            room = self.shard_tokens - shard["tokens"]
            count = min(len(ends), int(np.searchsorted(ends, start + room)) + 1)
            stop = int(ends[count - 1])
            self._tokens_file.write(ids[start:stop].data)
            self._index_file.write((ends[:count] - start + shard["tokens"]).astype("<u8").data)
            shard["tokens"] += stop - start
            shard["documents"] += count
            if shard["tokens"] >= self.shard_tokens:
                self._end()
            start, ends = stop, ends[count:]

    def close(self) -> dict:
        """Closes the files; the split's entry in tokens.json: {"tokens", "documents", "bytes", "shards"}."""
        self._end()
        tokens = sum(shard["tokens"] for shard in self.shards)
        documents = sum(shard["documents"] for shard in self.shards)
        return {"tokens": tokens, "documents": documents, "bytes": self.bytes, "shards": self.shards}

    def _begin(self) -> None:
        name = f"{self.split}-{len(self.shards):05d}.ds"
        self.shards.append({"file": name, "tokens": 0, "documents": 0})
        self._tokens_file = open(self.directory / name, "wb")  # noqa: SIM115 - _end closes it
        self._index_file = open(self.directory / f"{name}.index", "wb")  # noqa: SIM115

    def _end(self) -> None:
        for file in (self._tokens_file, self._index_file):
            if file is not None:
                file.close()
        self._tokens_file = self._index_file = None


def write_tokens(directory: Path, tokenizer: Tokenizer, eos: int, splits: dict[str, dict]) -> None:
    """Writes tokens.json and the tokenizer's files beside the shards, so that the directory says what it holds."""
    tokenizer.save(directory)
    about = {
        "schema": SCHEMA,
        "dtype": token_dtype(tokenizer.size).name,
        "byte_order": "little",
        "vocab": tokenizer.size,
        "eos": eos,
        "tokenizer_sha256": tokenizer.sha256,
        "splits": splits,
    }
    (directory / TOKENS).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Split:
    """The tokens of one split, memory-mapped.

    Attributes:
        tokens, documents: counts.
        bytes: UTF-8 bytes of the text that was encoded.
    """

    directory: Path
    dtype: np.dtype
    tokens: int
    documents: int
    bytes: int
    shards: list[dict] = field(repr=False)

    def read(self, start: int, count: int) -> np.ndarray:
        """(count,) int64: the ids start .. start + count, across the borders of files.

        Raises:
            ValueError: not all of them exist.
        """
        if start < 0 or count < 0 or start + count > self.tokens:
            raise ValueError(f"tokens {start} to {start + count} of a split of {self.tokens}")
        found = np.empty(count, np.int64)
        filled = 0
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while filled < count:
            offset = start + filled - int(self._starts[shard])
            piece = self._maps[shard][offset : offset + count - filled]
            found[filled : filled + len(piece)] = piece
            filled += len(piece)
            shard += 1
        return found

    @cached_property
    def document_ends(self) -> np.ndarray:
        """(documents,) uint64: where each document ends, its eos included, in tokens of the whole split.

        Raises:
            UserError: a file's ends do not rise from above 0 to its last token.
        """
        parts = [np.zeros(0, np.uint64)]
        for shard, start in zip(self.shards, self._starts[:-1], strict=True):
            file = self.directory / f"{shard['file']}.index"
            ends = np.fromfile(file, "<u8")
            if shard["tokens"] != (ends[-1] if len(ends) else 0) or np.any(ends <= np.append(np.uint64(0), ends[:-1])):
                hint = "llmctl verify says what is wrong; make the directory again with llmctl tokenize."
                raise UserError(f"{file} does not hold the ends of {shard['file']}'s documents.", hint, Exit.MISMATCH)
            parts.append(ends.astype(np.uint64) + np.uint64(start))
        return np.concatenate(parts)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.cumsum([0] + [shard["tokens"] for shard in self.shards])

    @cached_property
    def _maps(self) -> list[np.ndarray]:
        return [np.memmap(self.directory / shard["file"], self.dtype, "r") for shard in self.shards]


@dataclass(frozen=True)
class Tokens:
    """A directory of shards, as `tokenize` writes it.

    Attributes:
        vocab: rows that an embedding needs.
        eos: id that ends each document.
        tokenizer_sha256: see Tokenizer.sha256.
        splits: "train" and "heldout"; one that is empty is there with 0 tokens.
    """

    path: Path
    vocab: int
    eos: int
    dtype: np.dtype
    tokenizer_sha256: str
    splits: dict[str, Split]

    @classmethod
    def open(cls, path: Path | str) -> "Tokens":
        """Reads tokens.json and checks the sizes of the files against it.

        Raises:
            UserError: not such a directory, or files that do not agree with tokens.json.
        """
        path = Path(path)
        about = read_about(path)
        dtype = np.dtype(about["dtype"]).newbyteorder("<")
        splits = {
            name: Split(path, dtype, entry["tokens"], entry["documents"], entry["bytes"], entry["shards"])
            for name, entry in about["splits"].items()
        }
        tokens = cls(path, about["vocab"], about["eos"], dtype, about["tokenizer_sha256"], splits)
        sizes = {
            name: size
            for split in splits.values()
            for shard in split.shards
            for name, size in (
                (shard["file"], shard["tokens"] * dtype.itemsize),
                (f"{shard['file']}.index", shard["documents"] * 8),
            )
        }
        _check(path, sizes)
        return tokens

    def summary(self) -> dict[str, Any]:
        """Counts for a report: vocabulary, bytes of text a token, and documents, tokens and bytes of each split."""
        splits = {
            name: {"documents": split.documents, "tokens": split.tokens, "bytes": split.bytes}
            for name, split in self.splits.items()
        }
        size, count = (sum(split[key] for split in splits.values()) for key in ("bytes", "tokens"))
        return {"vocab": self.vocab, "bytes_per_token": size / max(1, count), **splits}

    def check_ids(self) -> None:
        """Reads every id.

        Raises:
            UserError: one is not in the vocabulary.
        """
        for split in self.splits.values():
            for shard, ids in zip(split.shards, split._maps, strict=True):
                check_ids(ids, self.vocab, self.path / shard["file"])

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens."""
        return Tokenizer.open(self.path)


def check_ids(ids: np.ndarray | list[int], vocab: int, path: Path) -> None:
    """Compares ids, one at least, that lie at `path` with the size of the vocabulary.

    Raises:
        UserError: one is not in it.
    """
    if (largest := int(np.max(ids))) >= vocab:
        problem = f"{path} holds id {largest}, but the vocabulary has {vocab}."
        raise UserError(problem, "Make the directory again with llmctl tokenize.", Exit.MISMATCH)


def _check(path: Path, sizes: dict[str, int]) -> None:
    """Compares the files with the sizes in bytes that tokens.json gives."""
    wrong = []
    for name, size in sizes.items():
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != size:
            wrong.append(
                f"{name} is missing" if found is None else f"{name} has {found} bytes, tokens.json says {size}"
            )
    if wrong:
        raise UserError(f"{path}: {'; '.join(wrong)}.", "Make the directory again with llmctl tokenize.", Exit.MISMATCH)
