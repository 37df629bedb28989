"""Small random models of transformers with BERT's tokenizer, saved as published ones are: for commands that read."""

from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="the oracle")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", *(f"##{one}" for one in "abcdefghij")]
WORDS += ["the", "cat", "sat", "on", "mat", "##s", "##ing", ",", ".", "in", "paris", "berlin", "new", "york", "café"]
SHAPE = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
}
TEXTS = ["the cat sat on the mat.", "Cats, in Paris", "", "abab sating new york in berlin cafe", "the " * 12]


def drawn(model):
    """The model in eval mode, every parameter random."""
    chance = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=chance) * 0.3
            parameter.copy_(values + (parameter.dim() == 1 and name.endswith("weight")))
    return model.eval()


def tokenizer():
    """BERT's."""
    return transformers.BertTokenizer(vocab={word: id for id, word in enumerate(WORDS)}, model_max_length=40)


def saved(kind: type, path: Path, **changes: object):
    """A drawn model of that class of transformers, written to a directory with its tokenizer."""
    made = drawn(kind(transformers.BertConfig(**{**SHAPE, **changes})))
    made.save_pretrained(path)
    tokenizer().save_pretrained(path)
    return made
