"""The small tokenizers of the tests of decoding."""

from tests.core.decode.conftest import byte_bpe

__all__ = ["byte_bpe"]
