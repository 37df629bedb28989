"""look: one text through a model, and what its attention makes of it, with a name for every row and column."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmctl.core.decode.prompt import prompt_ids
from llmctl.core.decode.rules import opening
from llmctl.core.infer.encode import Encoder
from llmctl.core.model.layers import Side
from llmctl.core.model.look import watch
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig


@dataclass(frozen=True)
class Labelled:
    """The tokens of a row.

    Attributes:
        ids: as the model reads them.
        tokens: as the vocabulary spells them.
        texts: what each adds to the text; its spelling where it adds no whole character.
    """

    ids: list[int]
    tokens: list[str]
    texts: list[str]

    @classmethod
    def of(cls, tokenizer: Tokenizer, ids: Sequence[int]) -> "Labelled":
        """Those of these ids; one that the tokenizer does not know is called <id>."""
        stream = tokenizer.stream(skip_special=False)
        tokens = [tokenizer.token(id) or f"<{id}>" for id in ids]
        return cls(list(ids), tokens, [stream.push(id) or token for id, token in zip(ids, tokens, strict=True)])

    def after(self, virtual: int) -> "Labelled":
        """These behind so many virtual tokens, which have the id -1."""
        names = [f"<virtual {number}>" for number in range(1, virtual + 1)]
        return Labelled([-1] * virtual + self.ids, names + self.tokens, names + self.texts)


@dataclass(frozen=True)
class Look:
    """What attention made of a text.

    Attributes:
        side: the stack.
        cross: it is attention to the source.
        layers: numbers of the L layers shown.
        heads: numbers of the n heads shown.
        queries: the T tokens that look.
        keys: the S tokens that they look at.
        scores: (L, n, T, S) float32 on the CPU, before the mask; these three as in `core.model.look.View`.
        masked: (L, n, T, S).
        weights: (L, n, T, S).
    """

    side: Side
    cross: bool
    layers: list[int]
    heads: list[int]
    queries: Labelled
    keys: Labelled
    scores: Tensor
    masked: Tensor
    weights: Tensor


def read(tokenizer: Tokenizer, config: ModelConfig, text: str, target: str | None) -> tuple[Labelled, Labelled | None]:
    """The tokens of a text as the model's first stack reads them, and those of its decoder beside an encoder.

    An encoder's text has the special tokens that the tokenizer puts around it. A target is what the decoder has
    written so far: the token that it starts with, then the target without tokens that end a text.

    Raises:
        UserError: a text that is empty, too long, or of another model's tokenizer.
    """
    if config.kind == "decoder":
        return Labelled.of(tokenizer, prompt_ids(tokenizer, text, config)), None
    source = _framed(tokenizer, config, text)
    if target is None:
        return Labelled.of(tokenizer, source), None
    start = opening(config)
    ids = _framed(tokenizer, config, target)
    ends = (*config.eos, tokenizer.eos)
    ids = ids[ids[0] in ends : len(ids) - (ids[-1] in ends)]  # one that opens texts too is not what a decoder says
    return Labelled.of(tokenizer, source), Labelled.of(tokenizer, [start, *ids])


def _framed(tokenizer: Tokenizer, config: ModelConfig, text: str) -> list[int]:
    """The ids of a text with the special tokens that belong around it."""
    row = Encoder(tokenizer, config).row(text)
    if isinstance(row, str):
        raise UserError("The text has no tokens.", "Give it a word.", Exit.USAGE)
    return row.ids


@torch.inference_mode()
def look(
    model: Transformer,
    text: Labelled,
    target: Labelled | None,
    side: Side,
    cross: bool,
    layers: Collection[int],
    heads: Collection[int],
) -> Look:
    """Run the model once over the text, and note what the attention of some layers and heads computes.

    Args:
        text: what the model reads; of an encoder-decoder, its encoder.
        target: what the decoder of an encoder-decoder reads; None: only the encoder runs.
        side, cross, layers, heads: as for `watch`.

    Raises:
        UserError: learned positions, and the text is longer than they are.
    """
    device, config = next(model.parameters()).device, model.config
    first = torch.tensor([text.ids], device=device)
    with watch(model, side, cross, layers, heads) as views:
        if config.kind == "encoder-decoder":
            if target is None:
                model.encode(first)
            else:
                model(torch.tensor([target.ids], device=device), encoder=EncoderInput(first))
        else:
            model(first, prefix=torch.ones_like(first, dtype=torch.bool) if config.prefix_lm else None)
    parts = (torch.stack([view[i][0] for view in views]).cpu() for i in (1, 2, 3))
    own = text if target is None or side == "encoder" else target
    prompt = model.virtual_tokens(side) - (prefix := getattr(model, side).virtual)
    queries = own.after(prompt)
    keys = text.after(model.virtual_tokens("encoder")) if cross else own.after(prefix + prompt)
    return Look(side, cross, [view.layer for view in views], sorted(set(heads)), queries, keys, *parts)
