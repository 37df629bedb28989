"""Source: where guesses come from, what they cost, and whether a model can be guessed for."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from llmctl.core.checkpoint.directory import Checkpoint
from llmctl.core.decode.rows import Rows, rows_of
from llmctl.core.decode.speculate.draft import Drafter, LookupDrafter, ModelDrafter, SkipDrafter
from llmctl.core.decode.speculate.reach import places
from llmctl.core.decode.speculate.skip import least_layers
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.drafting import Accept, Drafting
from llmctl.spec.model import ModelConfig
from llmctl.spec.sizes import crossed, layer_shapes

SAMPLE = 256  # tokens of a prompt by which layers to skip are chosen
LOOKUP = 0.01  # what looking a guess up costs, in passes of the model


@dataclass(frozen=True)
class Source:
    """Where guesses come from.

    Attributes:
        make: a drafter for texts that a model reads in those rows.
        cost: of a guess, in passes of the model over one token.
        tokens: guess so many each time; 0: as many as pay.
        accept: which guesses stay.
    """

    make: Callable[[Rows], Drafter]
    cost: float
    tokens: int = 0
    accept: Accept = "same"


def source_of(
    drafting: Drafting,
    model: Transformer,
    draft: Transformer | None = None,
    kv_bits: int = 0,
    start: Sequence[int] = (),
    sample: Sequence[int] = (),
) -> Source:
    """The source that was asked for.

    Args:
        model: that is guessed for.
        draft: the model of --draft-model, or None.
        kv_bits: of the keys and values that it keeps, as those of the model.
        start: ids that the decoders of encoder-decoders begin with.
        sample: a text by which the layers to skip are chosen, where that is asked for; () : none.

    Raises:
        UserError: the model cannot take back what it has read, or has not the layers to skip.
    """
    config = model.config
    check_going_back(config)
    how = {"tokens": drafting.draft_tokens, "accept": drafting.draft_accept}
    if draft is not None:
        check_going_back(draft.config)
        last = places(draft.config, draft.virtual_tokens("decoder"))
        return Source(
            lambda rows: ModelDrafter(rows_of(draft, kv_bits, tuple(start)), config.vocab, last),
            weight(draft.config) / weight(config),
            **how,
        )
    if drafting.lookup:
        return Source(lambda rows: LookupDrafter(model.encoder is not None), LOOKUP, **how)
    skipped = drafting.skipped(config.layers)
    if drafting.automatic:
        skipped = chosen_layers(model, sample)
    left = replace(config, layers=config.layers - len(skipped), window_layers=None, rope_skip=())
    return Source(lambda rows: SkipDrafter(rows, skipped), weight(left) / weight(config), **how)


def open_draft(
    path: Path, tokenizer: Tokenizer, config: ModelConfig, device: torch.device | str, dtype: torch.dtype | None
) -> Transformer:
    """A draft model, whose tokens are those of the model that it guesses for.

    Args:
        tokenizer: of that model.
        config: of that model.

    Raises:
        UserError: its tokens are others, or it is of another kind.
    """
    checkpoint = Checkpoint.open(path)
    if checkpoint.config.kind != config.kind:
        raise UserError(
            f"--draft-model {path} is of kind {checkpoint.config.kind}, but the model is of kind {config.kind}.",
            "Name a model of the same kind.",
            Exit.MISMATCH,
        )
    if checkpoint.config.opens != config.opens and config.kind == "encoder-decoder":
        raise UserError(
            f"--draft-model {path} begins a text with token {checkpoint.config.opens}, the model with {config.opens}.",
            "Name a model that was made with it.",
            Exit.MISMATCH,
        )
    if checkpoint.config.vocab < tokenizer.size:
        raise UserError(
            f"--draft-model {path} has {checkpoint.config.vocab} tokens, the model's tokenizer {tokenizer.size}.",
            "Name a model that was made with the same tokenizer, or use --lookup, which needs none.",
            Exit.MISMATCH,
        )
    if said := other_tokens(checkpoint.tokenizer(), tokenizer):
        raise UserError(
            f"--draft-model {path} has other tokens than the model: {said}.",
            "Name a model that was made with the same tokenizer, or use --lookup, which needs none.",
            Exit.MISMATCH,
        )
    return checkpoint.model(device, dtype)


def other_tokens(mine: Tokenizer, theirs: Tokenizer) -> str:
    """What the first token is that two tokenizers do not share, in words; "" if all their ids mean the same.

    Contents are compared, not sizes: tables of models are padded, and vocabularies of one size may differ.
    """
    one, other = (each.backend.get_vocab(with_added_tokens=True) for each in (mine, theirs))
    if one == other:
        return ""
    different = {id for token, id in one.items() ^ other.items()}
    first = min(different)
    return f"{len(different)} differ, the first is {first}: {mine.token(first)!r} and {theirs.token(first)!r}"


def check_going_back(config: ModelConfig) -> None:
    """Raises UserError where a model cannot forget the tokens that it read last, as wrong guesses need."""
    if config.attention == "linear":
        raise UserError(
            "A model with linear attention keeps sums, from which wrong guesses cannot be taken back.",
            "Leave --draft-model, --lookup and --skip-layers out.",
            Exit.MISMATCH,
        )


def weight(config: ModelConfig) -> int:
    """How many numbers a pass over one token multiplies with in a decoder: those of its layers and its head."""
    stack = config.last_stack
    shapes = layer_shapes(config, cross=crossed(config, stack)).values()
    return config.layers * sum(math.prod(shape) for shape in shapes) + config.vocab * config.width


def chosen_layers(model: Transformer, sample: Sequence[int]) -> frozenset[int]:
    """Half of the layers, those that change a text least."""
    if model.config.kind != "decoder" or model.config.layers < 4:
        raise UserError(
            "--skip-layers auto chooses among the layers of a decoder of 4 or more.", "Name them.", Exit.MISMATCH
        )
    device = next(model.parameters()).device
    tokens = torch.tensor([list(sample[:SAMPLE])], device=device)
    return least_layers(model, tokens, model.config.layers // 2)
