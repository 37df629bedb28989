"""cached: a teacher's answers on disk, row by row of a text, for students that learn without it."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from llmctl.core.data.batch import IGNORE, Answers, Batch, Place, TrainingOrder
from llmctl.core.device import Place as Device
from llmctl.core.model.transformer import Transformer
from llmctl.core.text.tokenizer import token_dtype
from llmctl.core.train.cross_entropy import chunk_rows
from llmctl.core.train.distill import scores_of, silently
from llmctl.core.train.divergence import Aim, taught, top
from llmctl.errors import Exit, UserError
from llmctl.spec.files import lock, read_json, sync, write_json
from llmctl.spec.train import rows_per_epoch

Part = Literal["train", "heldout"]
ABOUT = "answers.json"
SCHEMA = "llmctl-answers/1"


class Cache:
    """A directory of answers; what answers.json counts is whole, and what lies beyond is written over.

    PART.ids holds K ids of each place and PART.logp K + 1 float32, as `Answers` has them; PART.ends the number of
    places up to the end of each row, uint64. All are little-endian.

    Args:
        directory: made where it is absent.
        key: what the answers depend on; JSON.
        k: tokens of each place.
        vocab: ids that there are.

    Raises:
        UserError: the directory holds something else, or answers to something else; another process writes there.
    """

    def __init__(self, directory: Path, key: dict[str, Any], k: int, vocab: int):
        self.directory, self.key, self.k = directory, key | {"k": k, "vocab": vocab}, k
        self.dtypes = {"ids": token_dtype(vocab), "logp": np.dtype("<f4"), "ends": np.dtype("<u8")}
        self.rows: dict[str, int] = {"train": 0, "heldout": 0}
        found = directory / ABOUT
        if found.is_file():
            self._take_up(read_json(found, "description of answers"))
        elif directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            problem = f"--cache {directory} exists, and holds no answers of a teacher."
            raise UserError(problem, "Name another directory; it is made.")
        elif not directory.parent.is_dir():
            raise UserError(f"--cache {directory}: {directory.parent} does not exist.", f"mkdir -p {directory.parent}")

    def fill(self, part: Part, batches: Iterable[Batch], answer: Callable[[Batch], Answers]) -> Iterator[int]:
        """Add answers to rows that follow those there are; yields the number of rows after each batch.

        Raises:
            UserError: another process adds to the same directory.
        """
        handle = lock(self.directory)
        if handle is None:
            raise UserError(f"Another process writes answers into {self.directory}.", "Wait for it to end.")
        try:
            for batch in batches:
                made, counts = answer(batch), (batch.targets != IGNORE).sum(1).tolist()
                self._append(part, made, counts)
                yield self.rows[part]
        finally:
            os.close(handle)

    def read(self, part: Part, rows: Sequence[int]) -> Answers:
        """The answers to rows, one after another."""
        ends = self._map(part, "ends", 1)
        ids, logp = self._map(part, "ids", self.k), self._map(part, "logp", self.k + 1)
        spans = [slice(int(ends[row - 1]) if row else 0, int(ends[row])) for row in rows]
        joined = (np.concatenate([one[span] for span in spans]) for one in (ids, logp))
        first, second = joined
        return Answers(torch.from_numpy(first.astype(np.int64)), torch.from_numpy(second.astype(np.float32)))

    def _append(self, part: Part, made: Answers, counts: list[int]) -> None:
        rows = self.rows[part]
        places = int(self._map(part, "ends", 1)[rows - 1]) if rows else 0
        ends = places + np.cumsum(counts, dtype=np.int64)
        for name, values, at in (
            ("ids", made.ids, places * self.k),
            ("logp", made.logp, places * (self.k + 1)),
            ("ends", torch.from_numpy(ends), rows),
        ):
            path, dtype = self._path(part, name), self.dtypes[name]
            with open(path, "r+b" if path.exists() else "w+b") as file:
                file.truncate(at * dtype.itemsize)
                file.seek(0, os.SEEK_END)
                file.write(values.cpu().numpy().astype(dtype).tobytes())
            sync(path)
        self.rows[part] = rows + len(counts)
        write_json(self.directory / ABOUT, {"schema": SCHEMA, **self.key, "rows": self.rows})

    def _take_up(self, about: dict[str, Any]) -> None:
        other = [name for name in self.key if about.get(name) != self.key[name]]
        if about.get("schema") != SCHEMA or other:
            told = ", ".join(f"{name} {about.get(name)} there and {self.key[name]} here" for name in other[:3])
            raise UserError(
                f"--cache {self.directory} holds answers to something else: {told or 'another schema'}.",
                "Name another directory, or use the options that it was made with.",
                Exit.MISMATCH,
            )
        self.rows = dict(about["rows"])

    def _path(self, part: Part, name: str) -> Path:
        return self.directory / f"{part}.{name}"

    def _map(self, part: Part, name: str, columns: int) -> np.ndarray:
        values = np.memmap(self._path(part, name), self.dtypes[name], "r")
        return values if columns == 1 and name == "ends" else values.reshape(-1, columns)


@dataclass(frozen=True)
class Repeated:
    """Rows that are the same in every pass over a text, in another order each time: what is kept of them is of use.

    Attributes:
        order: its first pass is the one that is repeated.
    """

    order: TrainingOrder

    @property
    def rows(self) -> int:
        """Rows of a pass."""
        return rows_per_epoch(self.order.source.tokens, self.order.block)

    def numbers(self, step: int) -> list[int]:
        """The rows of step 1, 2, ..., by their place in the first pass."""
        first = (step - 1) * self.order.rows
        return [self._number(number) for number in range(first, first + self.order.rows)]

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Those rows."""
        places: list[Place] = [self.order.place(number) for number in numbers]
        return self.order.build(self.order.source, places, self.order.block)

    def _number(self, number: int) -> int:
        epoch, index = divmod(number, self.rows)
        if not epoch:
            return index
        return int(_shuffled(self.order.seed, epoch, self.rows)[index])


@lru_cache(maxsize=2)
def _shuffled(seed: int, epoch: int, rows: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch, 1])).permutation(rows)


def answering(teacher: Transformer, aim: Aim, k: int, device: Device) -> Callable[[Batch], Answers]:
    """What a teacher answers to a batch: its likeliest k tokens wherever something is asked for."""

    @torch.no_grad()
    def answer(batch: Batch) -> Answers:
        batch = batch.to(device.device)
        hidden = silently(teacher, batch)[batch.targets != IGNORE]
        scores, step = scores_of(teacher, hidden), chunk_rows(len(teacher.head.projection.weight))
        parts: list[Answers] = []
        for start in range(0, len(hidden), step):
            parts.append(top(taught(scores, aim, slice(start, start + step)), k))
        if not parts:
            empty: Tensor = hidden.new_zeros(0, k)
            return Answers(empty.long(), hidden.new_zeros(0, k + 1).float())
        return Answers(*(torch.cat(one) for one in zip(*parts, strict=True)))

    return answer
