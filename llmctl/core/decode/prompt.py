"""What goes into a model and what ends it: a prompt's ids, and the ids that stop a completion."""

from collections.abc import Iterable

from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig


def prompt_ids(tokenizer: Tokenizer, text: str, config: ModelConfig, special: bool = False) -> list[int]:
    """The ids that the model reads: the text's, after the beginning-of-text token where the tokenizer puts one.

    An encoder-decoder's encoder reads what its tokenizer makes of a text, with the tokens that end it too.

    Args:
        special: parse special tokens typed in the text; one that is typed where it belongs is not added again.

    Raises:
        UserError: the text is empty and there is no token to begin with, or it does not fit the model.
    """
    ids = text_ids(tokenizer, text, config, special)
    if not ids:
        start = start_id(tokenizer, config)
        if start is None:
            raise UserError(
                "The prompt is empty, and this model has no token that begins a text.", "Give it a word.", Exit.USAGE
            )
        ids = [start]
    check_known(ids, config)
    if len(ids) > config.context and config.position != "relative":
        raise UserError(
            f"The prompt has {len(ids)} tokens; the model's context holds {config.context}.", "Shorten the prompt."
        )
    return ids


def text_ids(tokenizer: Tokenizer, text: str, config: ModelConfig, special: bool = False) -> list[int]:
    """The ids of a text as `prompt_ids` gives them, though none or too many for the model."""
    ids, source = tokenizer.encode(text, special=special), config.kind == "encoder-decoder"
    if source:
        before, after = (list(part) for part in tokenizer.frame)
        ids = ids if ids[: len(before)] == before else [*before, *ids]
        ids = ids if after == ids[len(ids) - len(after) :] else [*ids, *after]
    elif tokenizer.begins and tokenizer.bos is not None and ids[:1] != [tokenizer.bos]:
        ids = [tokenizer.bos, *ids]
    return ids


def check_known(ids: list[int], config: ModelConfig) -> None:
    """Check that a model knows the ids that its tokenizer gives.

    Raises:
        UserError: one is beyond its vocabulary.
    """
    if ids and max(ids) >= config.vocab:
        raise UserError(
            f"The tokenizer gives the id {max(ids)}, but the model knows only ids below {config.vocab}.",
            "The tokenizer files in this checkpoint belong to another model.",
            Exit.MISMATCH,
        )


def start_id(tokenizer: Tokenizer, config: ModelConfig) -> int | None:
    """The token that a text begins after: beginning-of-text, or else the end of the text before it, or None.

    config.json has its say only where the tokenizer calls the token special: many a config names ids by default.
    """
    named = [token for token in (config.bos, *config.eos) if token in tokenizer.special_ids]
    for token in (tokenizer.bos, tokenizer.eos, *named):
        if token is not None and token < config.vocab:
            return token
    return None


def stop_ids(tokenizer: Tokenizer, config: ModelConfig, generation: dict[str, object]) -> frozenset[int]:
    """Every id that ends a text: what generation_config.json, config.json and the tokenizer call end-of-text."""
    listed = generation.get("eos_token_id")
    named = listed if isinstance(listed, list) else [listed]
    return frozenset(token for token in (*named, *config.eos, tokenizer.eos) if isinstance(token, int))


def special_stops(tokenizer: Tokenizer, stops: Iterable[str]) -> frozenset[int]:
    """The ids of stop strings that are special tokens, since the text of those is not shown and so never found."""
    parsed = {stop: tokenizer.encode(stop, special=True) for stop in stops}
    return frozenset(ids[0] for ids in parsed.values() if len(ids) == 1 and ids[0] in tokenizer.special_ids)
