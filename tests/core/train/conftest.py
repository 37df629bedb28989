"""A small directory of tokens for tests of training."""

import numpy as np
import pytest

from llmctl.core.data.shards import ShardWriter, Tokens, token_dtype, write_tokens
from llmctl.core.text.train import train_tokenizer


@pytest.fixture(scope="session")
def tokens(tmp_path_factory) -> Tokens:
    """Forty documents of bytes, four of them held out."""
    tokenizer = train_tokenizer([], "byte")
    directory = tmp_path_factory.mktemp("data") / "tokens"
    directory.mkdir()
    splits = {}
    for name, numbers in (("train", range(36)), ("heldout", range(36, 40))):
        texts = [f"document {n}: " + " ".join(f"{n} times {m} is {n * m}." for m in range(12)) for n in numbers]
        writer = ShardWriter(directory, name, token_dtype(tokenizer.size))
        ids = [[*tokenizer.encode(text), tokenizer.eos] for text in texts]
        ends = np.cumsum([len(document) for document in ids])
        writer.write(np.concatenate(ids), ends, sum(len(text.encode()) for text in texts))
        splits[name] = writer.close()
    write_tokens(directory, tokenizer, tokenizer.eos, splits)
    return Tokens.open(directory)
