"""From documents to shards: read in one thread, encoded in others, written in order; memory stays the same."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from llmctl.core.data.read import Document, files_of, read_texts
from llmctl.core.data.shards import ShardWriter, write_tokens
from llmctl.core.text.bulk import Engine, engine
from llmctl.core.text.tokenizer import Tokenizer, token_dtype
from llmctl.errors import Exit, UserError
from llmctl.spec.data import Algorithm, Reading, Sharding
from llmctl.spec.tokens import SPLITS

BATCH_BYTES = 1 << 20  # of text that one thread encodes at a time
SAMPLE_BYTES: dict[Algorithm, int] = {  # of text that a tokenizer is trained on, in 10 to 30 s
    "bpe": 100 << 20,
    "wordpiece": 100 << 20,
    "unigram": 20 << 20,
    "word": 100 << 20,
    "char": 100 << 20,
    "byte": 0,
}


class Done(NamedTuple):
    """How far the encoding is: counts of what is written."""

    documents: int
    tokens: int
    bytes: int


def write_shards(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    directory: Path,
    sharding: Sharding,
    threads: int,
    encoder: Engine | None = None,
) -> Iterator[Done]:
    """Encodes documents into a directory of tokens, and says after each batch how far it is.

    Args:
        documents: read as they are needed; each is encoded without BOS and ended by eos.
        directory: exists; gets the shards, tokens.json and the tokenizer.
        threads: that encode; one more reads and writes.
        encoder: how to encode; the fastest when None.

    Raises:
        UserError: the tokenizer has no end-of-text token, or there are no documents.
    """
    if tokenizer.eos is None:
        raise UserError(
            "The tokenizer has no end-of-text token, so documents cannot be told apart.",
            'Name one as "eos_token" in its tokenizer_config.json.',
            Exit.MISMATCH,
        )
    encoder = encoder or engine(tokenizer, tokenizer.eos)
    dtype = token_dtype(tokenizer.size)
    writers = {split: ShardWriter(directory, split, dtype, sharding.shard_tokens) for split in SPLITS}
    done = Done(0, 0, 0)
    waiting: deque[tuple[str, int, Future[tuple[np.ndarray, np.ndarray]]]] = deque()
    workers = 2 if encoder.parallel else threads  # of a parallel one, the second fills what the first leaves idle
    with ThreadPoolExecutor(workers) as pool:
        for split, texts, size in _batches(documents, sharding):
            waiting.append((split, size, pool.submit(encoder.encode, texts)))
            while len(waiting) > workers + 1 or (waiting and waiting[0][2].done()):
                done = _write(writers, waiting.popleft(), done)
                yield done
        while waiting:
            done = _write(writers, waiting.popleft(), done)
            yield done
    if not done.documents:
        raise UserError("There is no text to encode.", "The files are empty, or hold white space alone.")
    write_tokens(directory, tokenizer, tokenizer.eos, {split: writer.close() for split, writer in writers.items()})


def sample(paths: list[str], reading: Reading, sharding: Sharding, size: int) -> Iterator[str]:
    """Text of the train split to train a tokenizer on: the beginnings of all files, in proportion to their sizes.

    Args:
        size: bytes of text to give, about.
    """
    files = files_of(paths)
    sizes = [1 if file == "-" or file.startswith("hf:") else Path(file).stat().st_size for file in files]
    if reading.limit is not None:  # counts over all files, so they are read in order
        parts = [(files, size)]
    else:
        parts = [([file], size * own // max(1, sum(sizes))) for file, own in zip(files, sizes, strict=True)]
    for part, room in parts:
        for document in read_texts(part, reading):
            if room <= 0:
                break
            encoded = document.text.encode()
            if sharding.split(encoded) == "train":
                room -= len(encoded)
                yield document.text


def _batches(documents: Iterable[Document], sharding: Sharding) -> Iterator[tuple[str, list[str], int]]:
    """The texts of each split, in order, in batches of about BATCH_BYTES."""
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    sizes = dict.fromkeys(SPLITS, 0)
    for document in documents:
        encoded = document.text.encode()
        split = sharding.split(encoded)
        texts[split].append(document.text)
        sizes[split] += len(encoded)
        if sizes[split] >= BATCH_BYTES:
            yield split, texts[split], sizes[split]
            texts[split], sizes[split] = [], 0
    yield from ((split, texts[split], sizes[split]) for split in SPLITS if texts[split])


def _write(writers: dict[str, ShardWriter], part: tuple[str, int, Future], done: Done) -> Done:
    split, size, future = part
    ids, ends = future.result()
    writers[split].write(ids, ends, size)
    return Done(done.documents + len(ends), done.tokens + len(ids), done.bytes + size)
