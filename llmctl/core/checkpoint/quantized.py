"""QuantWriter: a checkpoint whose matrices are in few bits, written as they come, one in memory at a time."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from llmctl.core.checkpoint.carry import carry
from llmctl.core.checkpoint.directory import SHARD_BYTES
from llmctl.core.checkpoint.names import join, split
from llmctl.core.checkpoint.stream import Stream
from llmctl.core.checkpoint.write import DTYPES, Announced, Shards
from llmctl.core.compress.quant.grid import Codes
from llmctl.core.compress.quant.layouts import encode
from llmctl.errors import Exit, UserError
from llmctl.spec.coding import BLOCK
from llmctl.spec.names import Name
from llmctl.spec.quant import Grid, QuantConfig
from llmctl.spec.quant_files import Matrix, QuantFiles
from llmctl.spec.safetensors import TensorInfo
from llmctl.spec.sizes import shapes


class QuantWriter:
    """Writes a checkpoint from another, some matrices of it as codes; all else is carried over.

        with QuantWriter(directory, source, quant, grids) as writer:
            for ours in writer.matrices:
                weight = writer.weight(ours)
                writer.put(ours, quantise(weight, grids[ours], writer.scale_dtype(ours)))

    On leaving the block the tensors that nobody gave are copied, one after another, and config.json and the tokenizer
    written; after an error they are not.

    Args:
        directory: an existing, empty directory.
        source: a checkpoint of plain weights.
        quant: the scheme and the layout; of a cast there are no grids.
        grids: of each of our modules that is quantized: {"decoder.layers.0.attention.q": grid}.
        shard_bytes: largest size of one file's data.

    Attributes:
        files: what is written, known beforehand.
        matrices: our modules that are quantized, in the order in which the source has them.

    Raises:
        UserError: the source is not sound, or a matrix cannot be written so.
    """

    def __init__(
        self,
        directory: Path,
        source: Path,
        quant: QuantConfig,
        grids: Mapping[str, Grid],
        shard_bytes: int = SHARD_BYTES,
    ):
        self.files = QuantFiles.of(source, quant, grids)
        self.matrices = [ours for matrix in self.files.matrices for ours in matrix.ours]
        self._directory, self._source = directory, source
        self._stream = Stream(source)
        self._shapes = shapes(self.files.config)
        self._matrix: dict[str, Matrix] = {ours: one for one in self.files.matrices for ours in one.ours}
        self._waiting: dict[str, Codes] = {}
        self._plain = {rule.theirs: (rule, info) for rule, info, _ in self.files.plain}
        self._changed: dict[str, Tensor] = {}
        self._shards = Shards(directory, _announced(self.files), shard_bytes)

    def scale_dtype(self, ours: str) -> torch.dtype:
        """In which the scales of a matrix are stored: codes are to be chosen for scales so rounded."""
        return DTYPES[self._matrix[ours].dtype]

    def weight(self, ours: str) -> Tensor:
        """A matrix of the source, (O, I), as a view of its file; what was had before is let go of."""
        self._stream.release()
        return self._split(self._matrix[ours], ours)

    def put(self, ours: str, codes: Codes) -> None:
        """Give the codes of a matrix; those that share a tensor of the files are written when all have come.

        Raises:
            ValueError: it is none of `matrices`, or was given before.
        """
        if ours not in self._matrix or ours in self._waiting:
            raise ValueError(f"{ours} is no matrix to be quantized, or was given before")
        matrix = self._matrix[ours]
        self._waiting[ours] = codes
        if not all(one in self._waiting for one in matrix.ours):
            return
        joined = self._joined(matrix, [self._waiting[one] for one in matrix.ours])
        for one in matrix.ours:
            del self._waiting[one], self._matrix[one]
        made = encode(joined, matrix.coding, matrix.shape, DTYPES[matrix.dtype])
        for suffix, name, _, _ in matrix.tensors:
            self._shards.put(name, made[suffix])

    def plain_dtype(self, ours: str) -> torch.dtype:
        """In which a tensor that is not quantized is stored."""
        return next(DTYPES[info.dtype] for rule, info in self._plain.values() if ours in rule.ours)

    def plain(self, ours: str, tensor: Tensor) -> None:
        """Replace a tensor that is not quantized, such as a norm's: "decoder.layers.0.attention_norm.weight".

        Raises:
            ValueError: there is none of that name.
        """
        if not any(ours in rule.ours for rule, _ in self._plain.values()):
            raise ValueError(f"{ours} is no tensor that stays as numbers")
        self._changed[ours] = tensor

    def close(self) -> None:
        """Write what is left; `with` does it."""
        with self._shards:
            for name in [name for name in self._shards.order if name in self._plain]:
                rule, info = self._plain[name]
                self._stream.release()
                self._shards.put(name, self._whole(rule, info))
            self._stream.release()
        carry(self._directory, self.files.json, [self._source])

    def __enter__(self) -> "QuantWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.close()
        else:
            self._shards.__exit__(kind, *error)

    def _split(self, matrix: Matrix, ours: str) -> Tensor:
        rows = [self._shapes[f"{one}.weight"][0] for one in matrix.ours]
        parts = split(matrix.rule, self._stream.tensor(matrix.info), rows, self.files.config.heads)
        return parts[matrix.ours.index(ours)]

    def _whole(self, rule: Name, info: TensorInfo) -> Tensor:
        """A tensor of numbers as it is written."""
        stored = self._stream.tensor(info)
        if not any(name in self._changed for name in rule.ours):
            return stored
        rows = [self._shapes[name][0] for name in rule.ours]
        parts = split(rule, stored, rows, self.files.config.heads)
        parts = [self._changed.get(name, part).to(part) for name, part in zip(rule.ours, parts, strict=True)]
        return join(rule, parts, self.files.config.heads)

    def _joined(self, matrix: Matrix, parts: list[Codes]) -> Codes:
        """The codes of all that share a tensor, as one."""
        if len(parts) == 1:
            return parts[0]
        rule, heads = replace(matrix.rule, transposed=False), self.files.config.heads
        if matrix.coding.layout == "nf4":
            turns = len(parts) * heads if rule.fusion == "heads" else 1
            shares = [self._shapes[f"{one}.weight"] for one in matrix.ours]
            if any(rows * columns // (turns // len(parts) or 1) % BLOCK for rows, columns in shares):
                raise UserError(
                    f"{', '.join(matrix.ours)} lie in one matrix, where blocks of {BLOCK} weights would cross from one "
                    "to the other.",
                    "Use another --scheme, or --keep those.",
                    Exit.MISMATCH,
                )
            joined = [
                join(rule, [one[:, None] if one.ndim == 1 else one for one in some], heads)
                for some in zip(*((part.codes, part.scale) for part in parts), strict=True)
            ]
            return Codes(joined[0], joined[1][:, 0])
        zeros = None if parts[0].zero is None else join(rule, [part.zero for part in parts], heads)
        codes, scale = (
            join(rule, list(some), heads) for some in zip(*((p.codes, p.scale) for p in parts), strict=True)
        )
        return Codes(codes, scale, zeros)


def _announced(files: QuantFiles) -> list[Announced]:
    """Every tensor of OUT, in the order of the source."""
    places = {}
    for matrix in files.matrices:
        places[matrix.rule] = [Announced(name, shape, DTYPES[dtype]) for _, name, shape, dtype in matrix.tensors]
    for rule, info, dtype in files.plain:
        places[rule] = [Announced(rule.theirs, info.shape, DTYPES[dtype])]
    order = [rule for rule, _, _ in files.plain] + [matrix.rule for matrix in files.matrices]
    return [one for rule in order for one in places[rule]]
