"""Rules: what a checkpoint says of the tokens that it writes: what they begin with, which are forced, which banned."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llmctl.errors import Exit, UserError
from llmctl.spec.model import ModelConfig
from llmctl.spec.sample import Sampling


def opening(config: ModelConfig) -> int:
    """The id that the decoder of an encoder-decoder begins with.

    Raises:
        UserError: its config names none.
    """
    if config.opens is None:
        raise UserError(
            "Nothing says what this model's decoder begins with.",
            'Put "decoder_start_token_id" into its config.json.',
            Exit.MISMATCH,
        )
    return config.opens


def delayed(tokens: Tensor, config: ModelConfig) -> Tensor:
    """What a decoder reads that says a text again: (B, T) to the same, one place later, after what it begins with.

    Raises:
        UserError: nothing says what it begins with.
    """
    return torch.cat([torch.full_like(tokens[:, :1], opening(config)), tokens[:, :-1]], dim=1)


@dataclass(frozen=True)
class Rules:
    """Constraints of generation_config.json, by the meaning that transformers gives them.

    Attributes:
        start: ids that the decoder of an encoder-decoder begins with; () for a decoder, which has a prompt.
        first: the first token that it writes, or None (forced_bos_token_id).
        last: ids of which one is written where the limit of tokens is reached (forced_eos_token_id).
        never: ids that are not written (suppress_tokens, bad_words_ids).
        never_first: ids that are not written at first (begin_suppress_tokens).
        never_after: runs of ids that are not completed (bad_words_ids of several tokens).
        ngram: no run of so many tokens is written twice; 0: any may be (no_repeat_ngram_size).
        least: tokens before an end of text may come (min_new_tokens, min_length).
        bias: runs of ids, with what is added to the score of the last where a text ends with the others
            (sequence_bias).
        wanted: words of which each is written before the text ends, as one of its spellings in ids; the first of
            them is the one that is written where it does not come by itself.
    """

    start: tuple[int, ...] = ()
    first: int | None = None
    last: tuple[int, ...] = ()
    never: tuple[int, ...] = ()
    never_first: tuple[int, ...] = ()
    never_after: tuple[tuple[int, ...], ...] = ()
    ngram: int = 0
    least: int = 0
    bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    wanted: tuple[tuple[tuple[int, ...], ...], ...] = ()

    @classmethod
    def of(cls, said: dict, config: ModelConfig) -> "Rules":
        """Those of a checkpoint.

        Args:
            said: generation_config.json; or config.json, where older checkpoints say the same.

        Raises:
            UserError: values that are no ids of the model, or a decoder that nothing begins.
        """
        both = config.kind == "encoder-decoder"
        start = said.get("decoder_start_token_id")
        start = opening(config) if both and start is None else start
        banned = said.get("bad_words_ids") or []
        if not isinstance(banned, list) or not all(isinstance(run, list) and run for run in banned):
            raise _wrong("bad_words_ids", banned, "lists of token ids")
        ends = {(one,) for one in _ids(said, "eos_token_id", config)}
        runs = [_checked("bad_words_ids", run, config) for run in banned]
        runs = [run for run in runs if run not in ends]
        first = _ids(said, "forced_bos_token_id", config) if both else ()
        least = max(_count(said, "min_new_tokens"), _count(said, "min_length") - 1 if both else 0)
        return cls(
            start=_checked("decoder_start_token_id", [start], config) if both else (),
            first=first[0] if first else None,
            last=_ids(said, "forced_eos_token_id", config),
            never=(*_ids(said, "suppress_tokens", config), *(run[0] for run in runs if len(run) == 1)),
            never_first=_ids(said, "begin_suppress_tokens", config),
            never_after=tuple(run for run in runs if len(run) > 1),
            ngram=_count(said, "no_repeat_ngram_size"),
            least=least,
            bias=_biases(said, config),
        )

    def over(self, sampling: Sampling) -> "Rules":
        """These, but where the user has said otherwise."""
        said = {"ngram": sampling.no_repeat_ngram, "least": sampling.min_tokens}
        return replace(self, **{name: value for name, value in said.items() if value is not None})


def _ids(said: dict, key: str, config: ModelConfig) -> tuple[int, ...]:
    """A value that is an id, a list of ids, or absent."""
    value = said.get(key)
    return _checked(key, value if isinstance(value, list) else [] if value is None else [value], config)


def _checked(key: str, ids: list, config: ModelConfig) -> tuple[int, ...]:
    if any(type(one) is not int or not 0 <= one < config.vocab for one in ids):
        raise _wrong(key, ids, f"token ids below {config.vocab}")
    return tuple(ids)


def _biases(said: dict, config: ModelConfig) -> tuple[tuple[tuple[int, ...], float], ...]:
    """sequence_bias: pairs of a list of ids and a number."""
    pairs = said.get("sequence_bias") or []
    good = isinstance(pairs, list) and all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], list) and pair[0] for pair in pairs
    )
    if not good or not all(isinstance(value, int | float) for _, value in pairs):
        raise _wrong("sequence_bias", pairs, "pairs of a list of token ids and a number")
    return tuple((_checked("sequence_bias", ids, config), float(value)) for ids, value in pairs)


def _count(said: dict, key: str) -> int:
    value = said.get(key) or 0
    if type(value) is not int or value < 0:
        raise _wrong(key, value, "a number of tokens")
    return value


def _wrong(key: str, value: object, wanted: str) -> UserError:
    return UserError(f"generation_config.json: {key} is {value!r}; wanted {wanted}.", "Mend it.", Exit.MISMATCH)
