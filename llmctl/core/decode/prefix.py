"""Prefix: the beginning of a text that a model has read, with its keys and values, for texts that begin alike."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Prefix:
    """A beginning, and what a model keeps of it.

    Attributes:
        ids: of its tokens, those of virtual ones not counted.
        pairs: of each layer, the keys and values (Hkv, S, D), those of virtual tokens first.
    """

    ids: tuple[int, ...]
    pairs: list[tuple[Tensor, Tensor]]
