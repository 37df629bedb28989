"""A small tokenizer, for what begins with a text."""

from tests.core.decode.conftest import byte_bpe  # noqa: F401
