"""Transformer: tokens to hidden states, and hidden states to logits."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmctl.core.model.cache import KVCache
from llmctl.core.model.layers import NORMS, Embedding, Linear, Stack
from llmctl.core.model.position import sinusoids
from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig


class Transformer(nn.Module):
    """A decoder of any family: `model.head(model(tokens))` are the logits.

    The names of its parameters are the same for every family, and methods rely on them. Parameters are zeros until
    `initialise` or a checkpoint fills them; with device="meta" they take no memory.
    """

    def __init__(self, config: ModelConfig, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        super().__init__()
        self.config = config
        self.embed = Embed(config, device, dtype)
        self.decoder = Stack(config, device, dtype)
        made = {"bias": False, "device": device, "dtype": dtype}
        self.head = TiedHead(self.embed.tokens) if config.tie else Linear(config.width, config.vocab, **made)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Hidden states of each token, given those before it.

        Args:
            tokens: (B, T) int64.
            positions: (B, T) int64; None: counted on from the cache's length.
            segments: (B, T) int64, the document of each token in a packed row, 0 for padding: a token sees only
                its own document. None: each row is one document.
            cache: earlier tokens of the same rows; the new ones are added to it. Without gradients only.

        Returns:
            (B, T, width), normalised: what `head` takes.

        Raises:
            UserError: learned positions, and the row is longer than they are.
        """
        start = 0 if cache is None else cache.length
        end = start + tokens.shape[1]
        if positions is None:
            if self.embed.positions is not None and end > self.config.context:
                raise UserError(
                    f"A row of {end} tokens does not fit this model: its learned positions end at "
                    f"{self.config.context}.",
                    "Use shorter rows.",
                    Exit.MISMATCH,
                )
            positions = torch.arange(start, end, device=tokens.device)[None]  # (1, T)
        x = self.embed(tokens, positions)
        x = self.decoder(x, positions, segments, cache)
        if cache is not None:
            cache.advance(tokens.shape[1])
        return x


class Embed(nn.Module):
    """Tokens, and absolute positions where the model has them, to the first hidden states."""

    def __init__(self, config: ModelConfig, device=None, dtype=None):
        super().__init__()
        self.tokens = Embedding(config.vocab, config.width, device=device, dtype=dtype)
        learned = config.position == "learned"
        self.positions = Embedding(config.context, config.width, device=device, dtype=dtype) if learned else None
        self.norm = NORMS[config.norm](config.width, config.norm_eps, device, dtype) if config.embed_norm else None
        self.sinusoidal = config.position == "sinusoidal"
        self.dropout = config.dropout

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """(B, T) tokens and (B or 1, T) positions to (B, T, width).

        Source: token vectors are scaled by the root of the width where sinusoids are added: Vaswani et al.,
        arXiv:1706.03762, sections 3.4 and 3.5.
        """
        x = self.tokens(tokens)
        if self.positions is not None:
            x = x + self.positions(positions)
        elif self.sinusoidal:
            x = x * math.sqrt(x.shape[-1]) + sinusoids(positions, x.shape[-1], x.dtype)
        if self.norm is not None:
            x = self.norm(x)
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


class TiedHead(nn.Module):
    """Logits by the token embedding's own matrix; it has no parameters."""

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        self._embedding = (embedding,)  # in a tuple, else its weight would be listed twice

    @property
    def weight(self) -> Tensor:
        """(V, width), the embedding's."""
        return self._embedding[0].weight

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., width) to (..., V)."""
        return F.linear(hidden, self.weight)
