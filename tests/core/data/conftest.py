"""A small tokenizer for tests of data."""

import pytest

from llmctl.core.text.train import train_tokenizer


@pytest.fixture
def byte_tokenizer():
    return train_tokenizer([], "byte")
