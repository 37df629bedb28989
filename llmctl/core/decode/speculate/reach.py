"""Reach: how far ahead a text may be read, which ends where a model's positions end or change."""

import math

from llmctl.spec.drafting import MOST
from llmctl.spec.model import ModelConfig


def places(config: ModelConfig, virtual: int) -> int | None:
    """How many places a text may take in a model; None: any number."""
    return config.context - virtual if config.position == "learned" else None


def unturned(config: ModelConfig, virtual: int, held: int) -> float:
    """How many tokens a row may read at once without changing the angles of earlier ones, which guesses must not.

    Args:
        virtual: tokens before each row.
        held: tokens that it has read.
    """
    scaling = config.rope_scaling
    if config.position != "rope" or scaling is None or scaling.kind not in ("dynamic", "longrope"):
        return math.inf
    room = (scaling.original_context or config.context) - virtual - held
    return math.inf if room < 0 and scaling.kind == "longrope" else room


def reach(config: ModelConfig, virtual: int, held: list[int]) -> int:
    """How many tokens every row may read and forget again.

    Args:
        held: tokens that each has read.
    """
    end = places(config, virtual)
    room = min(unturned(config, virtual, length) for length in held)
    return int(max(0, min(room, MOST + 1, math.inf if end is None else end - max(held))))
