"""How each kind of model says how likely a text is: METHODS."""

from collections.abc import Callable

from llmctl.core.decode.prompt import start_id
from llmctl.core.metrics.noised import Noised
from llmctl.core.metrics.passages import Framing
from llmctl.core.metrics.perplexity import Method, Windows
from llmctl.core.metrics.pseudo import Pseudo
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.spec.model import Kind, ModelConfig
from llmctl.spec.scoring import Scoring, Undone


def method_for(
    model: Transformer, tokenizer: Tokenizer, scoring: Scoring, undone: Undone | None = None, seed: int = 0
) -> Method:
    """The method of a model's kind.

    Args:
        undone: of an encoder-decoder, the noise that it undoes; None: by its tokenizer.
        seed: of that noise.

    Raises:
        UserError: sizes that do not fit the model, or a tokenizer without the special tokens that are needed.
    """
    return METHODS[model.config.kind](model, tokenizer, scoring, undone, seed)


def framing_for(tokenizer: Tokenizer, config: ModelConfig, scoring: Scoring) -> Framing:
    """What makes the passages that a model's method takes."""
    start = start_id(tokenizer, config) if scoring.bos and config.kind == "decoder" else None
    return Framing(tokenizer, config, start)


def _windows(model: Transformer, tokenizer: Tokenizer, scoring: Scoring, undone: Undone | None, seed: int) -> Method:
    return Windows(model, *scoring.sizes(model.config))


def _pseudo(model: Transformer, tokenizer: Tokenizer, scoring: Scoring, undone: Undone | None, seed: int) -> Method:
    return Pseudo(model, tokenizer, *scoring.sizes(model.config), scoring.masking)


def _noised(model: Transformer, tokenizer: Tokenizer, scoring: Scoring, undone: Undone | None, seed: int) -> Method:
    return Noised(model, tokenizer, scoring.sizes(model.config)[0], undone, seed)


METHODS: dict[Kind, Callable[[Transformer, Tokenizer, Scoring, Undone | None, int], Method]] = {
    "decoder": _windows,
    "encoder": _pseudo,
    "encoder-decoder": _noised,
}
