"""Pseudo-log-likelihood: how likely a text is to an encoder, which is asked for each token with that token hidden."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from llmctl.core.data.vocabulary import Vocabulary
from llmctl.core.decode.prompt import check_known
from llmctl.core.metrics.passages import Passage
from llmctl.core.metrics.scored import Found, padded, scored
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import Tokenizer
from llmctl.errors import Exit, UserError
from llmctl.spec.scoring import Masking


class Hidden(NamedTuple):
    """A text with a token hidden.

    Attributes:
        ids: what the model reads, special tokens and masks included.
        place: of the token that is scored.
        target: that token.
    """

    ids: list[int]
    place: int
    target: int


class Pseudo:
    """Encoders: each token is scored in a row of its own, in which it is masked, and with `masking` its word's others.

    A text that is longer than the window is read in windows that overlap; each token is scored once.

    Args:
        window: tokens of a row, special ones included.
        stride: tokens by which it moves on.
        masking: what is hidden with a token: nothing (token), what follows it in its word (word-l2r: a token is not
            to be found by the rest of its word), or all of its word.

    Raises:
        UserError: a tokenizer without a mask, or a window with no room for a text.

    Source: Salazar et al., "Masked language model scoring", arXiv:1910.14659, equation 1; word-l2r: Kauf and
    Ivanova, "A better way to do masked language model scoring", arXiv:2305.10588, section 3.
    """

    whole = True

    def __init__(self, model: Transformer, tokenizer: Tokenizer, window: int, stride: int, masking: Masking):
        if tokenizer.mask is None:
            raise UserError(
                "The tokenizer has no mask token, behind which an encoder could be asked for one.",
                'Name it as "mask_token" in tokenizer_config.json.',
                Exit.MISMATCH,
            )
        self.model, self.mask, self.masking = model, tokenizer.mask, masking
        self.before, self.after = (list(part) for part in tokenizer.frame)
        self.room = window - len(self.before) - len(self.after)
        if self.room < 1:
            raise UserError(f"--window is {window}, but special tokens take {window - self.room}.", code=Exit.USAGE)
        self.stride = min(stride, self.room)
        self.vocabulary = None if masking == "token" else Vocabulary.of(tokenizer, model.config.vocab)
        self.signature: dict[str, object] = {
            "window": window,
            "stride": self.stride,
            "score": "pseudo-log-likelihood",
            "masking": masking,
        }

    def parts(self, passage: Passage) -> Iterator[Hidden]:
        """A row for each scored token."""
        ids = passage.ids
        check_known(ids, self.model.config)
        words = None if self.vocabulary is None else self.vocabulary.words(np.array(ids, np.int64))
        first = len(ids) - passage.scored
        done = first
        for begin in range(0, len(ids), self.stride):
            end = min(begin + self.room, len(ids))
            for place in range(max(done, begin), end):
                row = [*self.before, *ids[begin:end], *self.after]
                for at in self._masked(place, begin, end, words):
                    row[len(self.before) + at - begin] = self.mask
                yield Hidden(row, len(self.before) + place - begin, ids[place])
            done = max(done, end)
            if end == len(ids):
                break

    def size(self, part: Hidden) -> int:
        """Tokens of a row."""
        return len(part.ids)

    @torch.inference_mode()
    def passes(self, pool: Sequence[Hidden], batch_tokens: int, each: bool) -> Iterator[Found]:
        """What each pass scored of a pool, longest rows first."""
        device = next(self.model.parameters()).device
        order = sorted(range(len(pool)), key=lambda number: len(pool[number].ids))
        while order:
            rows = max(1, batch_tokens // len(pool[order[-1]].ids))
            numbers, order = order[-rows:], order[:-rows]
            batch = [pool[number] for number in numbers]
            tokens, segments = padded([one.ids for one in batch], device)
            hidden = self.model(tokens, segments=segments)  # (B, T, D)
            places = torch.tensor([one.place for one in batch], device=device)
            found = hidden[torch.arange(len(batch), device=device), places]  # (B, D)
            yield list(zip(numbers, scored(self.model, found, [[one.target] for one in batch], each), strict=True))

    def _masked(self, place: int, begin: int, end: int, words: np.ndarray | None) -> list[int]:
        """The places that are hidden where one is scored."""
        if words is None:
            return [place]
        first = place if self.masking == "word-l2r" else begin
        return [at for at in range(first, end) if words[at] == words[place]]
