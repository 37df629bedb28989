"""For commands that load a model: llmctl within this process, so that torch is loaded once; a small checkpoint."""

import io
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from llmctl.cli import main


class Ended(NamedTuple):
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(capsys, monkeypatch, tmp_path) -> Callable[..., Ended]:
    """`call("generate", path, "-p", "a", stdin=b"")`: runs llmctl in an empty directory, here and now."""

    def call(*argv: object, stdin: bytes = b"") -> Ended:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["llmctl", *map(str, argv)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        before = signal.getsignal(signal.SIGTERM)
        with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            main()
        signal.signal(signal.SIGTERM, before)
        captured = capsys.readouterr()
        return Ended(ended.value.code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A random llama of 300 rows and a context of 64, with a byte-level tokenizer of fewer tokens."""
    from llmctl.core.checkpoint.directory import save_checkpoint
    from llmctl.core.model.init import initialise
    from llmctl.core.model.transformer import Transformer
    from llmctl.core.text.tokenizer import Tokenizer
    from llmctl.spec.model import ModelConfig

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<|endoftext|>", "<|turn|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the list of the things that the thing lists"] * 20, trainer)
    shape = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "ff": 64, "context": 64, "init_std": 0.3}
    config = ModelConfig(vocab=300, tie=False, **shape)
    path = tmp_path_factory.mktemp("tiny") / "model"
    path.mkdir()
    save_checkpoint(path, initialise(Transformer(config), seed=5), config)
    Tokenizer(backend, {"eos_token": "<|endoftext|>"}).save(path)
    return path
