"""Tokenizers that differ in how their tokens stand for characters, in memory, for tests of masks and marks."""

import json
from functools import lru_cache

import tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from llmctl.core.text.tokenizer import Tokenizer
from llmctl.core.text.train import train_tokenizer

SPECIALS = ("<|im_start|>", "<|im_end|>")
TEXTS = [
    "Hello, how are you today? I am fine.",
    "user assistant: yes no",
    "über naïve 日本語 😀",
    "a  b\n\nc\t ﬁne",
] * 8


def byte_level() -> Tokenizer:
    """GPT's kind: a character may be split over tokens, and tokens begin with spaces."""
    return train_tokenizer(TEXTS, "bpe", 330, specials=SPECIALS)


def metaspace() -> Tokenizer:
    """Llama 2's kind: a space is put before a text, unknown bytes are tokens, BOS begins every text."""
    trainer = trainers.BpeTrainer(vocab_size=110, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    made = Backend(models.BPE(unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.decoder = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse()])
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    return Tokenizer(made, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def changing() -> Tokenizer:
    """T5's kind, with a normalizer that makes texts longer and shorter; texts end with </s>."""
    trainer = trainers.UnigramTrainer(
        vocab_size=100, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    made = Backend(models.Unigram())
    made.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(TEXTS, trainer)
    made.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    return Tokenizer(made, {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"})


def both_ends() -> Tokenizer:
    """BART's kind: <s> text </s>."""
    backend = json.loads(train_tokenizer(TEXTS, "bpe", 330, roles="roberta").backend.to_str())
    made = Backend.from_str(json.dumps(backend))
    return Tokenizer(made, {f"{role}_token": name for role, name in ROBERTA.items()})


ROBERTA = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}


def of_bytes() -> Tokenizer:
    """A token for each byte."""
    return train_tokenizer([], "byte")


KINDS = {
    "bytes": of_bytes,
    "byte level": byte_level,
    "metaspace": metaspace,
    "changing": changing,
    "both ends": both_ends,
}


@lru_cache
def made(kind: str) -> Tokenizer:
    """A tokenizer of that kind, made once."""
    return KINDS[kind]()
