"""Survey: the perplexity of a model on several texts: of each, of each domain, and of all together."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from llmctl.core.metrics.bootstrap import Bootstrap
from llmctl.core.metrics.passages import Passage
from llmctl.core.metrics.perplexity import Measured, Method, Perplexity, Step, measured
from llmctl.errors import UserError


@dataclass
class Survey:
    """Sums over documents.

    Attributes:
        texts: of each text, in their order.
        domains: of each domain, in the order in which they come.
        resamples: how often documents are drawn anew for intervals; 0: never.
        seed: of those draws.
    """

    texts: list[Perplexity]
    domains: dict[str, Perplexity] = field(default_factory=dict)
    resamples: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        self._drawn = Bootstrap(("nll", "tokens", "bytes"), self.resamples, self.seed)

    def add(self, place: "Place", sum_: Perplexity) -> None:
        """Take in a document."""
        self.texts[place.text] += sum_
        if place.domain is not None:
            self.domains[place.domain] = self.domains.get(place.domain, Perplexity()) + sum_
        if sum_.tokens:
            self._drawn.add(np.array([[sum_.nll, sum_.tokens, sum_.bytes]]))

    def intervals(self, level: float, whole: bool = True) -> dict[str, dict[str, float]]:
        """Where figures of the total lie in this share of the resamples of documents.

        Args:
            whole: as for `Perplexity.figures`.
        """
        nats = self._drawn.ratio_interval("nll", "tokens", level)
        found = {"perplexity": [math.exp(min(709.0, one)) for one in nats], "nll_per_token": nats}
        if whole and self.total.bytes:
            bits = self._drawn.ratio_interval("nll", "bytes", level)
            found["bits_per_byte"] = [one / math.log(2) for one in bits]
        return {name: {"low": low, "high": high} for name, (low, high) in found.items()}

    @property
    def total(self) -> Perplexity:
        """Of all texts together."""
        return sum(self.texts, Perplexity())


class Place(NamedTuple):
    """Where a document comes from.

    Attributes:
        text: number of the text.
        domain: that its record names; None: no field was asked for.
    """

    text: int
    domain: str | None


def survey(
    method: Method, texts: Sequence[Iterable[Passage]], into: Survey, by: str | None = None, batch_tokens: int = 8192
) -> Iterator[tuple[Step, list[tuple[Place, Measured]]]]:
    """Score the documents of all texts, many together in a pass, and add them up.

    Args:
        into: gets the sums.
        by: the field of a record that names its domain.

    Yields:
        After each pass how far it is, and the documents that are done, in their order.

    Raises:
        UserError: a document without that field; and as for `measured`.
    """
    places: dict[int, Place] = {}

    def passages() -> Iterator[Passage]:
        count = 0
        for number, text in enumerate(texts):
            for passage in text:
                places[count] = Place(number, None if by is None else domain(passage, by))
                count += 1
                yield passage

    for step in measured(method, passages(), batch_tokens):
        done = [(places.pop(one.number), one) for one in step.done]
        for place, one in done:
            into.add(place, one.sum)
        yield step, done


def domain(passage: Passage, by: str) -> str:
    """What a document's record says its domain is.

    Raises:
        UserError: it has no such field, or one that holds no single value.
    """
    if passage.record is None:
        raise UserError(f"{passage.source} is no record, so it has no field {by!r}.", "--by takes JSON lines or CSV.")
    if by not in passage.record:
        found = ", ".join(map(repr, passage.record))
        raise UserError(f"{passage.source} has no field {by!r}, only {found}.", "Name another one: --by FIELD")
    value = passage.record[by]
    if isinstance(value, (dict, list)):
        raise UserError(f"{passage.source} has a field {by!r} that holds several values.", "Name another: --by FIELD")
    return str(value)
