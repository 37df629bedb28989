"""Source: where guesses come from, what they cost, and whether a model can be guessed for."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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

FEWEST = 4  # layers of a model of which some are left out by themselves
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


def checked(drafting: Drafting, tokenizer: Tokenizer, config: ModelConfig) -> Checkpoint | None:
    """The checkpoint of --draft-model, if one is named; what is wrong with the options is said before weights are read.

    Args:
        tokenizer: of the model that is guessed for.
        config: of that model.

    Raises:
        UserError: the draft model's tokens are others, or it is of another kind; or the model cannot take back what it
            has read, or has not the layers to skip.
    """
    check_going_back(config)
    if drafting.automatic and (config.kind != "decoder" or config.layers < FEWEST):
        raise UserError(
            f"--skip-layers auto chooses among the layers of a decoder of {FEWEST} or more.",
            "Name them.",
            Exit.MISMATCH,
        )
    drafting.skipped(config.layers)
    path = drafting.draft_model
    if path is None:
        return None
    checkpoint = Checkpoint.open(path)
    found = checkpoint.config
    check_going_back(found)
    hint = "Name a model that was made with the same tokenizer, or use --lookup."
    if found.kind != config.kind:
        said = f"is of kind {found.kind}, but the model is of kind {config.kind}"
    elif config.kind == "encoder-decoder" and found.opens != config.opens:
        said = f"begins a text with token {found.opens}, the model with {config.opens}"
    elif found.vocab < tokenizer.size:
        said = f"has {found.vocab} tokens, the model's tokenizer {tokenizer.size}"
    elif differing := other_tokens(checkpoint.tokenizer(), tokenizer):
        said = f"has other tokens than the model: {differing}"
    else:
        return checkpoint
    raise UserError(f"--draft-model {path} {said}.", hint, Exit.MISMATCH)


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


def sample_of(tokenizer: Tokenizer, text: str) -> list[int]:
    """The beginning of a text by which layers to skip can be chosen; [] of one that is no text."""
    try:
        return tokenizer.encode(text[: 8 * SAMPLE])[:SAMPLE]
    except UserError:
        return []


def chosen_layers(model: Transformer, sample: Sequence[int]) -> frozenset[int]:
    """Half of the layers: those that change a text least, or without a text those in the middle."""
    layers, count = model.config.layers, model.config.layers // 2
    tokens = [token for token in sample if token < model.config.vocab][:SAMPLE]
    if len(tokens) < 2:
        first = (layers - count) // 2
        return frozenset(range(first, first + count))
    return least_layers(model, torch.tensor([tokens], device=next(model.parameters()).device), count)
