"""Examples: what a fine-tuning learns from, as ids, in flat arrays; and the batches that they become."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from llmctl.spec.sets import Task

Label = int | float | np.ndarray


class Example(NamedTuple):
    """One example.

    Attributes:
        ids: (N,) int, what the model reads; beside an encoder, what the decoder is to say, without what it begins
            with.
        scored: (N,) bool; scored[i] says that token i is asked for. All False where labels are asked for.
        source: (S,) int, what the encoder of an encoder-decoder reads that writes; else None.
        label: of a text: the number of its label; a float, of a regression; (L,) float32, where labels do not exclude
            each other. Of words: (N,) int, the tag of each token, IGNORE where none is asked for. None: no label.
        types: (N,) int, the kind of each token; None: all of kind 0.
    """

    ids: np.ndarray
    scored: np.ndarray
    source: np.ndarray | None = None
    label: Label | None = None
    types: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Examples:
    """Examples in memory, in a few flat arrays.

    Attributes:
        task: what they are for; decides how they become batches.
        counts: "examples", "tokens" (that pass through the model), "trained_tokens" (that are asked for; of a
            classifier texts, of a tagger words), and of those that were read "truncated", "dropped" (left out: too
            long, or nothing asked for) and "over" (longer than the limit).
        notes: what a user should hear of them.
        prefix: the model's tokens see each other both ways up to the first that is asked for (prefix LM).
    """

    task: Task
    counts: dict[str, int]
    notes: tuple[str, ...]
    _ids: "_Flat"
    _scored: np.ndarray  # (M,) bool, beside _ids
    _sources: "_Flat | None"
    _types: np.ndarray | None  # (M,) uint8, beside _ids
    _labels: list[Label | None] | None = field(repr=False)
    prefix: bool = False

    @classmethod
    def of(
        cls,
        task: Task,
        examples: Iterable[Example],
        counts: dict[str, int] | None = None,
        notes: Iterable[str] = (),
        prefix: bool = False,
    ) -> "Examples":
        """Those examples; `counts` adds what is known of them before they were examples."""
        found = list(examples)
        kinds = [one.types for one in found]
        types = None
        if any(kind is not None and kind.any() for kind in kinds):
            filled = [np.zeros(len(one.ids), np.uint8) if one.types is None else one.types for one in found]
            types = np.concatenate(filled).astype(np.uint8)
        scored = np.concatenate([np.zeros(0, bool), *(one.scored for one in found)])
        ids = _Flat.of([one.ids for one in found])
        sources = _Flat.of([one.source for one in found]) if found and found[0].source is not None else None
        labels = [one.label for one in found] if any(one.label is not None for one in found) else None
        read = len(ids.data) + (0 if sources is None else len(sources.data))
        made = {
            "examples": len(found),
            "tokens": read,
            "trained_tokens": sum(asked(task, one) for one in found),
            **{"truncated": 0, "dropped": 0, "over": 0, **(counts or {})},
        }
        return cls(task, made, tuple(notes), ids, scored, sources, types, labels, prefix)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, number: int) -> Example:
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        number %= len(self)
        at = self._ids.slice(number)
        return Example(
            self._ids.data[at],
            self._scored[at],
            None if self._sources is None else self._sources.data[self._sources.slice(number)],
            None if self._labels is None else self._labels[number],
            None if self._types is None else self._types[at],
        )

    def __iter__(self) -> Iterator[Example]:
        return (self[number] for number in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """(E,) int64: tokens of each example; beside an encoder, of what the decoder says."""
        return np.diff(self._ids.ends)

    @property
    def source_lengths(self) -> np.ndarray | None:
        """(E,) int64: tokens that the encoder reads of each example; None where there is none that reads apart."""
        return None if self._sources is None else np.diff(self._sources.ends)

    @property
    def share(self) -> float:
        """Share of the tokens that is trained on; of what a decoder beside an encoder says, where there is one."""
        return float(self._scored.mean()) if len(self._scored) else 0.0

    @property
    def ended(self) -> frozenset[int]:
        """Ids that trained runs of tokens end with: what ends an answer, so what generation is to stop at."""
        last = self._scored.copy()
        last[:-1] &= ~self._scored[1:]
        last[self._ids.ends[1:] - 1] |= self._scored[self._ids.ends[1:] - 1]  # runs of two examples may meet
        return frozenset(np.unique(self._ids.data[last]).tolist())


def asked(task: Task, example: Example) -> int:
    """What an example asks for: tokens that have one before them; of a classifier one text, of a tagger words."""
    if task == "classify":
        return 1
    if task == "tag":
        return int((np.asarray(example.label) >= 0).sum())
    return int(example.scored[0 if task == "seq2seq" else 1 :].sum())


@dataclass(frozen=True, eq=False)
class _Flat:
    """Rows of ids in one array; row i is data[ends[i]:ends[i + 1]]."""

    data: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, rows: list[np.ndarray]) -> "_Flat":
        data = np.concatenate([np.zeros(0, np.int32), *rows]).astype(np.int32, copy=False)
        return cls(data, np.cumsum([0, *map(len, rows)], dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def slice(self, number: int) -> slice:
        return slice(int(self.ends[number]), int(self.ends[number + 1]))
