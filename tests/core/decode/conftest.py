"""Small models with random weights, and small tokenizers, for decoding."""

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers

from llmctl.core.model.init import initialise
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.spec.model import ModelConfig

SHAPE = {"vocab": 300, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ff": 64, "context": 64, "init_std": 0.3}
SHAPES = {
    "llama": {},
    "window": {"window": 5},
    "gpt2": {"norm": "layer", "activation": "gelu_tanh", "gated": False, "position": "learned", "mlp_bias": True},
    "bloom": {"norm": "layer", "activation": "gelu_tanh", "gated": False, "position": "alibi", "embed_norm": True},
    "sinusoidal": {"position": "sinusoidal"},
}


def make_model(kind: str = "llama", **changes: object) -> Transformer:
    """A model whose next tokens are far from uniform, so that greedy choices have no near ties."""
    torch.manual_seed(0)
    return initialise(Transformer(ModelConfig(**{**SHAPE, **SHAPES[kind], **changes})), seed=5).eval()


@pytest.fixture(scope="session")
def byte_bpe() -> Tokenizer:
    """Byte-level BPE of 290 tokens: one model row in 300 has no token."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|endoftext|>", "<|bos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the list of the things that the thing lists"] * 20, trainer)
    return Tokenizer(backend, {"eos_token": "<|endoftext|>"})


@pytest.fixture(scope="session")
def byte_fallback() -> Tokenizer:
    """Like Llama 2's: words begin with a mark, what is not in the vocabulary is spelled in byte tokens."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "▁the", "▁list", "a", "b"]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    backend.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<s>", "</s>", "<unk>"])
    return Tokenizer(backend, {"eos_token": "</s>", "bos_token": "<s>"})
