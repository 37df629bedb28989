"""A small model that has learned something, made once for all tests that need one: compression shows on such alone."""

from pathlib import Path
from typing import NamedTuple

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.model.transformer import Transformer


class Learned(NamedTuple):
    """A trained decoder and its text.

    Attributes:
        path: the checkpoint: Llama, width 128, 4 layers, 4 heads of 2 KV heads, ff 352; float32.
        tokens: the directory of tokens that it was trained on; 5 % of the documents are held out.
        text: JSON lines of some held-out and other documents, for what takes texts.
    """

    path: Path
    tokens: Path
    text: Path

    def model(self) -> Transformer:
        """The model, whose parameters may be written to."""
        return Checkpoint.open(self.path).model(writable=True)
