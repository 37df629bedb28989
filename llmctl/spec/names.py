"""Name: how one tensor in a checkpoint's file corresponds to one or more tensors of ours."""

from dataclasses import dataclass
from typing import Literal

Fusion = Literal["blocks", "heads"]


@dataclass(frozen=True)
class Name:
    """One rename rule; `{i}` stands for a layer's number on both sides.

    Attributes:
        theirs: the tensor's name on disk, as the family's published checkpoints have it.
        ours: the tensors of `Transformer` that it holds, in the order they lie along the output rows.
        transposed: the file stores (in, out), as GPT-2's Conv1D does; ours is always (out, in).
        fusion: how several of ours share the rows: one block after another (GPT-2), or taking turns
            head by head (BLOOM).
        row: the file stores a vector with a leading dimension of one.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    fusion: Fusion = "blocks"
    row: bool = False
