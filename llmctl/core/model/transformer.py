"""Transformer: tokens to hidden states, and hidden states to the scores of tokens, labels and pairs."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmctl.core.model.cache import Cache
from llmctl.core.model.heads import Classifier, Head, TiedHead
from llmctl.core.model.layers import Block, Embedding, Linear, Shared, Side, Stack
from llmctl.core.model.memory import EncoderInput, Memory
from llmctl.core.model.norms import norm_of
from llmctl.core.model.position import sinusoids
from llmctl.core.model.virtual import Place, Prompt
from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig


class Transformer(nn.Module):
    """An encoder, a decoder, or both, of any family: `model.head(model(tokens))` are the logits.

    The names of its parameters are the same for every family, and methods rely on them. Parameters are zeros until
    `initialise` or a checkpoint fills them; with device="meta" they take no memory.

    Attributes:
        prompt: None, or vectors that stand before those of each row's tokens, in the first stack.
    """

    def __init__(self, config: ModelConfig, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        super().__init__()
        self.config = config
        self.prompt: Prompt | None = None
        made = {"device": device, "dtype": dtype}
        self.embed = Embed(config, **made)
        both = config.kind == "encoder-decoder"
        self.encoder_embed = Embed(config, self.embed.tokens, **made) if both else None
        self.encoder = Stack(config, "encoder", **made) if "encoder" in config.stacks else None
        self.decoder = Stack(config, "decoder", **made) if "decoder" in config.stacks else None
        self.head = None
        if config.lm_head:
            self.head = TiedHead(config, self.embed.tokens, **made) if config.tie else Head(config, **made)
        self.pooler = Linear(config.width, config.width, **made) if config.pooler else None
        self.next_sentence = Linear(config.width, 2, **made) if config.next_sentence else None
        self.classifier = Classifier(config, **made) if config.labels else None
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        cache: Cache | None = None,
        types: Tensor | None = None,
        prefix: Tensor | None = None,
        encoder: EncoderInput | None = None,
        memory: Memory | None = None,
    ) -> Tensor:
        """Hidden states of each token: in a decoder given those before it, in an encoder given all.

        Args:
            tokens: (B, T) int64; of an encoder-decoder, those of its decoder.
            positions: (B, T) int64; None: counted on from the cache's length.
            segments: (B, T) int64, the document of each token in a packed row, 0 for padding: a token sees only
                its own document. None: each row is one document.
            cache: earlier tokens of the same rows; the new ones are added to it. Without gradients only.
            types: (B, T) int64, the kind of each token; None: all are of kind 0.
            prefix: (B, T) bool, tokens of a decoder that see each other both ways.
            encoder: what the encoder of an encoder-decoder reads.
            memory: what it made of that, in place of `encoder`.

        Returns:
            (B, T, width), normalised: what `head` takes.

        Raises:
            UserError: learned positions, and the row is longer than they are.
            ValueError: a source that the model has no encoder for, or none where it needs one.
        """
        if (self.encoder_embed is None) == (encoder is not None or memory is not None):
            raise ValueError(f"a model of kind {self.config.kind} reads {'a' if self.encoder_embed else 'no'} source")
        if encoder is not None:
            memory = self.encode(*encoder)
        prompt = self.prompt if self.encoder_embed is None else None  # else its encoder has read it
        row = self._row(self.last_stack, prompt, tokens, positions, segments, types, prefix, cache)
        x = self.last_stack(self.embed(*row[:5]), row.positions, row.segments, cache, row.prefix, memory)
        if cache is not None:
            cache.advance()
        return x if row.place is None else self._own(x, row.place)

    def enter(
        self,
        side: Side,
        tokens: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        types: Tensor | None = None,
        prefix: Tensor | None = None,
        memory: Memory | None = None,
    ) -> tuple[Tensor, Shared]:
        """What the first layer of a stack is given, for who walks layer by layer; arguments as for `forward`.

            x, shared = model.enter("decoder", tokens)
            for layer in model.decoder.layers.values():
                x = layer(x, shared)

        Returns:
            (B, T, width), and what its layers share; the stack's norm is not applied to what the last returns.
        """
        stack = {"encoder": self.encoder, "decoder": self.decoder}[side]
        embed = self.encoder_embed if side == "encoder" and self.encoder_embed is not None else self.embed
        row = self._row(stack, None, tokens, positions, segments, types, prefix)
        x = embed(*row[:5])
        return x, stack.prepare(x, row.positions, row.segments, None, row.prefix, memory)

    def encode(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        types: Tensor | None = None,
    ) -> Memory:
        """What an encoder makes of a source, for the decoder to read; arguments as for `forward`.

        With a prompt, that of its vectors too: the last of its slots are the source's.

        Raises:
            UserError: learned positions, and the row is longer than they are.
        """
        embed = self.embed if self.encoder_embed is None else self.encoder_embed
        row = self._row(self.encoder, self.prompt, tokens, positions, segments, types)
        return Memory(self.encoder(embed(*row[:5]), row.positions, row.segments), row.segments)

    def virtual_tokens(self, side: Side) -> int:
        """How many virtual tokens stand before each row that a stack reads: they take places in its context."""
        stack = {"encoder": self.encoder, "decoder": self.decoder}[side]
        prompted = self.prompt is not None and (side == "encoder" or self.encoder is None)
        return (stack.virtual if stack is not None else 0) + (len(self.prompt.vectors) if prompted else 0)

    @property
    def last_stack(self) -> Stack:
        """The stack whose hidden states `forward` returns."""
        return self.encoder if self.decoder is None else self.decoder

    def _own(self, x: Tensor, place: Place) -> Tensor:
        """The hidden states of a row's own tokens, (B, N + T, width) to (B, T, width).

        Where the first token stands for the row, it is the first of the prompt, as in a row that begins with the
        prompt's tokens: its state takes the place of the first token's, and classifiers need not know.
        """
        if self.config.classifier != "sequence" or self.config.classifier_pool != "first":
            return x[:, place.count :]
        return torch.cat((x[:, :1], x[:, place.count + 1 :]), dim=1)

    def pooled(self, hidden: Tensor, segments: Tensor | None = None) -> Tensor:
        """What stands for each row: (B, T, width) to (B, width).

        The pooler's view of the first token; without a pooler the first token, or the last that is not padding.
        """
        if self.pooler is not None:
            return torch.tanh(self.pooler(hidden[:, 0]))
        return self._standing(hidden, segments)

    def _standing(self, hidden: Tensor, segments: Tensor | None) -> Tensor:
        """The token that stands for each row: (B, T, width) to (B, width)."""
        if self.config.classifier_pool == "first":
            return hidden[:, 0]
        if segments is None:
            return hidden[:, -1]
        slots = torch.arange(hidden.shape[1], device=hidden.device)
        last = (slots * (segments != 0)).amax(dim=1)  # (B,)
        return hidden[torch.arange(len(hidden), device=hidden.device), last]

    def next_sentence_scores(self, hidden: Tensor) -> Tensor:
        """(B, T, width) to (B, 2): that the second text of each row follows the first, and that it does not."""
        return self.next_sentence(self.pooled(hidden))

    def classify(self, hidden: Tensor, segments: Tensor | None = None, tokens: Tensor | None = None) -> Tensor:
        """Scores of labels: of each row, (B, L), or with a classifier of tokens of each token, (B, T, L).

        A classifier's own dense layer stands in the pooler's place: old files of RoBERTa carry both and use one.

        Args:
            tokens: (B, T) int64, what a decoder read. Its classifiers are published with a text's last token found as
                the last that is not the pad token, so that a pad token within the text counts as padding too.
        """
        if self.config.classifier == "token":
            return self.classifier(hidden)
        if tokens is not None and self.config.kind == "decoder" and self.config.pad is not None:
            seen = tokens != self.config.pad
            segments = seen if segments is None else seen & (segments != 0)
        pooled = self.pooled if self.config.classifier_dense == "none" else self._standing
        return self.classifier(pooled(hidden, segments))

    @property
    def layers(self) -> list[Block]:
        """Every layer of every stack, in the order in which they run."""
        stacks = [stack for stack in (self.encoder, self.decoder) if stack is not None]
        return [layer for stack in stacks for layer in stack.layers.values()]

    def _row(
        self,
        stack: Stack,
        prompt: Prompt | None,
        tokens: Tensor,
        positions: Tensor | None,
        segments: Tensor | None,
        types: Tensor | None,
        prefix: Tensor | None = None,
        cache: Cache | None = None,
    ) -> "_Row":
        """What a stack reads in one pass: the arguments of `forward`, with the virtual tokens that are theirs."""
        start = 0 if cache is None else cache.length
        first, known = stack.virtual, 0 if prompt is None else len(prompt.vectors)
        place, vectors = None, None
        if known and start == 0:
            place, vectors = Place.of(known, segments), prompt.vectors
            segments, prefix = (None if part is None else place.beside(1, part) for part in (segments, prefix))
            types = None if types is None else place.beside(0, types)
        added = 0 if place is None else place.count
        if positions is None and start:
            positions = cache.places(tokens.shape[1], tokens.device)  # (B or 1, T)
            self._check_fits(start + tokens.shape[1])
        elif positions is None:
            end = first + added + tokens.shape[1]
            positions = torch.arange(first, end, device=tokens.device)[None]  # (1, S)
            self._check_fits(end)
        elif first or known:
            positions = positions + (first + known)
            if self.embed.positions is not None:
                self._check_fits(int(positions.max()) + 1)
            if place is not None:
                own = torch.arange(first, first + added, device=tokens.device)
                positions = place.join(own[None], positions, 1)
        return _Row(tokens, positions, types, vectors, place, segments, prefix)

    def _check_fits(self, end: int) -> None:
        if self.embed.positions is not None and end > self.config.context:
            raise UserError(
                f"A row of {end} tokens does not fit this model: its learned positions end at {self.config.context}.",
                "Use shorter rows.",
                Exit.MISMATCH,
            )


class _Row(NamedTuple):
    """What a stack reads in one pass, T tokens and those of the prompt; the first five are for its embedding.

    Attributes:
        tokens: (B, T).
        positions: (B or 1, S).
        types: (B, S), or None.
        vectors: (N, width) of the prompt, or None.
        place: where they go, or None.
        segments: (B, S), or None.
        prefix: (B, S) bool, or None.
    """

    tokens: Tensor
    positions: Tensor
    types: Tensor | None
    vectors: Tensor | None
    place: Place | None
    segments: Tensor | None
    prefix: Tensor | None


class Embed(nn.Module):
    """Tokens, and absolute positions and kinds of tokens where the model has them, to the first hidden states.

    Args:
        tokens: the table of another Embed, which is then shared; None: one of its own.
    """

    def __init__(self, config: ModelConfig, tokens: nn.Embedding | None = None, device=None, dtype=None):
        super().__init__()
        made = {"device": device, "dtype": dtype}
        if tokens is None:
            self.tokens = Embedding(config.vocab, config.width, **made)
        self._shared = (tokens,)  # in a tuple, else its weight would be listed twice
        self.offset = config.position_offset
        rows, learned = config.context + config.position_offset, config.position == "learned"
        self.positions = Embedding(rows, config.width, **made) if learned else None
        self.types = Embedding(config.token_types, config.width, **made) if config.token_types else None
        self.norm = norm_of(config, **made) if config.embed_norm else None
        self.sinusoidal = config.position == "sinusoidal"
        self.scaled = self.sinusoidal or config.embed_scale
        self.dropout = config.dropout

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        types: Tensor | None = None,
        vectors: Tensor | None = None,
        place: Place | None = None,
    ) -> Tensor:
        """(B, T) tokens, (B or 1, S) positions and (B, S) kinds to (B, S, width), S = T without a prompt.

        Args:
            vectors: (N, width) of a prompt, which stand beside those of tokens; S = N + T.
            place: where among them.

        Source: token vectors are scaled by the root of the width where sinusoids are added: Vaswani et al.,
        arXiv:1706.03762, sections 3.4 and 3.5; kinds: Devlin et al., arXiv:1810.04805, figure 2.
        """
        x = self.vectors(tokens)
        if place is not None:
            x = place.join(vectors[None], x, 1)
        if self.types is not None:
            x = x + self.types(x.new_zeros((1, 1), dtype=torch.int64) if types is None else types)
        if self.positions is not None:
            x = x + self.positions(positions + self.offset)
        elif self.sinusoidal:
            x = x + sinusoids(positions, x.shape[-1], x.dtype)
        if self.norm is not None:
            x = self.norm(x)
        return F.dropout(x, self.dropout) if self.training and self.dropout else x

    def vectors(self, tokens: Tensor) -> Tensor:
        """What stands for each token before anything is added: (B, T) to (B, T, width)."""
        x = (self._shared[0] or self.tokens)(tokens)
        return x * torch.tensor(math.sqrt(x.shape[-1]), dtype=x.dtype) if self.scaled else x  # as Gemma rounds it
