"""Embedder: vectors of a request's texts, a batch at a time, so that completions are not kept waiting."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llmctl.core.infer.embed import Layer, embed
from llmctl.core.infer.encode import Encoder, Row
from llmctl.core.model.transformer import Transformer
from llmctl.core.serve.refusal import Refusal
from llmctl.core.serve.schema import Ids, Vectors
from llmctl.errors import UserError
from llmctl.spec.sentence import Pooling

TOKENS = 2048  # of a batch, where it has more than one text
MOST = 2048  # inputs of one request


@dataclass(frozen=True)
class Given(Row):
    """A text that came as ids; nothing is put around them."""

    given: Ids = ()

    @property
    def ids(self) -> list[int]:
        """The ids that the model reads."""
        return list(self.given)

    def __len__(self) -> int:
        return len(self.given)


@dataclass(eq=False)
class Embedder:
    """How texts become vectors.

    Attributes:
        encoder: without a limit, for what is too long is refused.
        limit: tokens of a text, special ones included.
        layers: after the pooling.
    """

    model: Transformer
    encoder: Encoder
    limit: int
    pooling: Pooling
    normalize: bool
    layers: Sequence[Layer] = ()

    def rows(self, ask: Vectors) -> list[Row]:
        """What the model reads of each input.

        Raises:
            Refusal: one is empty, too long, or unknown; or the vectors are to be of another length.
        """
        if len(ask.inputs) > MOST:
            raise Refusal(f"input holds {len(ask.inputs)} texts; wanted at most {MOST}.", param="input")
        rows = [self._row(one, at) for at, one in enumerate(ask.inputs)]
        width = self.layers[-1].weight.shape[0] if self.layers else self.model.config.width
        if ask.dimensions not in (None, width):
            said = f"dimensions is {ask.dimensions}; vectors of this model have {width}."
            raise Refusal(said, param="dimensions")
        return rows

    def batches(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], Callable[[], np.ndarray]]]:
        """Places of rows, and what makes their vectors (n, D) float32; rows of like length together."""
        order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
        while order:
            count = max(1, TOKENS // len(rows[order[-1]]))
            places, order = order[-count:], order[:-count]
            yield places, lambda places=places: self._vectors([rows[at] for at in places])

    def _vectors(self, rows: Sequence[Row]) -> np.ndarray:
        return embed(self.model, rows, self.pooling, self.normalize, self.layers).numpy().astype("<f4")

    def _row(self, text: str | Ids, at: int) -> Row:
        try:
            row = self.encoder.row(text) if isinstance(text, str) else self._given(text)
        except UserError as error:
            raise Refusal(error.problem, param="input") from error
        if not isinstance(row, Row):
            raise Refusal(f"input[{at}]: {row}.", param="input")
        if len(row) > self.limit:
            raise Refusal(
                f"input[{at}] has {len(row)} tokens; wanted at most {self.limit}.",
                param="input",
                code="context_length_exceeded",
            )
        return row

    def _given(self, ids: Ids) -> Row:
        vocab = self.model.config.vocab
        if max(ids) >= vocab:
            raise UserError(f"There is no token {max(ids)}; ids go up to {vocab - 1}.")
        blank = self.encoder.backend.encode("", add_special_tokens=False)
        blank.pad(len(ids))
        return Given(blank, given=ids)
