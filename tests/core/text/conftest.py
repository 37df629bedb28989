"""Text to train tokenizers on, and one tokenizer of each algorithm."""

import pytest

from llmctl.core.text.tokenizer import Tokenizer
from llmctl.core.text.train import train_tokenizer
from llmctl.spec.data import VOCAB_SIZES

WORDS = """The list of items is sorted in place, and the sorted list isn't returned. Don't call it on a tuple!
    def sort(self, key=None, reverse=False):
        return sorted(self.items, key=key)[:12]

A number like 1234567 or 3.14159 is kept. Naïve cafés serve crème brûlée; 日本語のテキスト and русский текст too.
"""


@pytest.fixture(scope="session")
def texts() -> list[str]:
    lines = [line for line in WORDS.splitlines() if line]
    return [" ".join(lines[i % len(lines)] for i in range(n, n + 3)) + f"\n\n\tline {n * 7919}\n" for n in range(60)]


@pytest.fixture(scope="session")
def trained(texts) -> dict[str, Tokenizer]:
    sizes = {"bpe": 400, "wordpiece": 300, "unigram": 420, "word": 60}
    return {algorithm: train_tokenizer(texts, algorithm, sizes.get(algorithm)) for algorithm in VOCAB_SIZES}
