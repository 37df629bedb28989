"""tokens.json: what a directory of tokens says that it holds, read and checked without its shards."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmctl.errors import Exit, UserError
from llmctl.spec.files import read_json

TOKENS = "tokens.json"
SPLITS = ("train", "heldout")
IDS = {"uint16": 2**16, "uint32": 2**32}  # dtype on disk -> how many ids it can tell apart


def is_tokens(path: Path | str) -> bool:
    """Whether it is a directory that `llmctl tokenize` made."""
    return (Path(path) / TOKENS).is_file()


def read_about(directory: Path) -> dict[str, Any]:
    """The object in tokens.json, with every key that it must have, of its type, in its range.

    Raises:
        UserError: there is none, or it is not that; all that is wrong is named.
    """
    file = Path(directory) / TOKENS
    if not is_tokens(directory):
        problem = f"{directory} is not a directory of tokens: it has no {TOKENS}."
        raise UserError(problem, "llmctl tokenize makes one.")
    about = read_json(file, "description of tokens")
    if wrong := list(_wrong(about)):
        raise UserError(f"{file} cannot be read: {'; '.join(wrong)}.", "Make the directory again.", Exit.MISMATCH)
    return about


def _wrong(about: dict[str, Any]) -> Iterator[str]:
    vocab, eos, dtype, splits = (about.get(key) for key in ("vocab", "eos", "dtype", "splits"))
    if not isinstance(dtype, str) or dtype not in IDS:
        yield f"dtype is {dtype!r}, wanted {' or '.join(IDS)}"
    elif not _count(vocab) or not 0 < vocab <= IDS[dtype]:
        yield f"vocab is {vocab!r}, wanted a whole number from 1 to {IDS[dtype]}, as many as {dtype} holds"
    elif not _count(eos) or eos >= vocab:
        yield f"eos is {eos!r}; the vocabulary is 0 to {vocab - 1}"
    if not isinstance(about.get("tokenizer_sha256"), str):
        yield "tokenizer_sha256 is no text"
    if not isinstance(splits, dict) or not all(name in splits for name in SPLITS):
        yield f"splits lacks {' or '.join(SPLITS)}"
    else:
        for name, split in splits.items():
            yield from _wrong_in(name, split)


def _wrong_in(name: str, split: Any) -> Iterator[str]:
    """What is wrong with one split: {"tokens", "documents", "bytes", "shards": [{"file", "tokens", "documents"}]}."""
    shards = split.get("shards") if isinstance(split, dict) else None
    if not isinstance(shards, list) or not _counts(split, "tokens", "documents", "bytes"):
        yield f"{name} is not tokens, documents, bytes and shards"
    elif not all(map(_shard, shards)):
        yield f"the shards of {name} are not each a file of this directory with its tokens and documents"
    else:
        for key in ("tokens", "documents"):
            if (total := sum(shard[key] for shard in shards)) != split[key]:
                yield f"{name} has {split[key]} {key}, but its files have {total}"


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _counts(entry: Any, *keys: str) -> bool:
    return isinstance(entry, dict) and all(_count(entry.get(key)) for key in keys)


def _shard(entry: Any) -> bool:
    if not _counts(entry, "tokens", "documents") or not isinstance(entry.get("file"), str):
        return False
    return entry["tokens"] > 0 and re.fullmatch(r"(?!\.\.?$)[^/\\\0]+", entry["file"]) is not None
