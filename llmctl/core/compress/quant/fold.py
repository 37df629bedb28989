"""fold: inputs of matrices made smaller channel by channel where they arise, and weights larger; the model stays."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llmctl.core.model.layers import Block
from llmctl.spec.model import ModelConfig


class Fold(NamedTuple):
    """A place in a block whose channels may be scaled.

    Attributes:
        source: what makes the channels: a norm, or a matrix whose rows they are.
        readers: every matrix that they are given to, and nothing else is.
        repeat: channels that each row of the source becomes, in runs of `span`: values that several heads read.
        span: rows of a head.
    """

    source: str
    readers: tuple[str, ...]
    repeat: int = 1
    span: int = 1

    def shared(self, channels: Tensor) -> Tensor:
        """Of (I,) a channel, the mean over those that are one row of the source, (I,) again."""
        heads = channels.unflatten(0, (-1, self.repeat, self.span))  # (Hkv, R, D)
        return heads.mean(1, keepdim=True).expand_as(heads).flatten()

    def rows(self, channels: Tensor) -> Tensor:
        """What `shared` made, a number a row of the source."""
        return channels.unflatten(0, (-1, self.repeat, self.span))[:, 0].flatten()


@dataclass
class Given:
    """What matrices are given, over N places of text: channels that a fold divides are divided here too.

    Attributes:
        moment: 2 X X' / N, (I, I) float32.
        mean: of |x|, (I,).
        largest: |x|, (I,).
    """

    moment: Tensor
    mean: Tensor
    largest: Tensor

    def divide(self, scale: Tensor) -> None:
        """By (I,), in place: of matrices that are given the same, once."""
        self.moment /= scale
        self.moment /= scale[:, None]
        self.mean /= scale
        self.largest /= scale


def norms(config: ModelConfig, block: Block) -> list[Fold]:
    """Where a norm stands between the stream and matrices alone."""
    if config.norm_place not in ("pre", "sandwich"):
        return []  # its output is the stream, or the matrices read the stream itself
    crossed = [] if block.cross_attention is None else [Fold("cross_attention_norm", ("cross_attention.q",))]
    gate = ("mlp.gate",) if config.gated else ()
    own = Fold("attention_norm", tuple(f"attention.{name}" for name in "qkv"))
    return [own, *crossed, Fold("mlp_norm", (*gate, "mlp.up"))]


def matrices(config: ModelConfig, block: Block) -> list[Fold]:
    """Where a matrix makes what another is given: values, which are averaged, and what is multiplied by the gate."""
    attentions = ("attention",) if block.cross_attention is None else ("attention", "cross_attention")
    repeat, span = config.heads // config.kv_heads, config.head_dim
    found = [Fold(f"{name}.v", (f"{name}.out",), repeat, span) for name in attentions]
    if config.gated or config.activation == "relu":  # relu(x / s) is relu(x) / s
        found.append(Fold("mlp.up", ("mlp.down",)))
    return found


def fold(
    block: Block, at: Fold, scale: Tensor, weights: dict[str, Tensor], kept: Callable[[str], torch.dtype]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Divide the channels at one place of a block by (I,) float32, and multiply the columns that meet them.

    A norm's weight is rounded as it is stored, and the columns are multiplied by the quotient that results.

    Args:
        scale: above 0; where rows are repeated, as `Fold.shared` makes it.
        weights: of the block's matrices, by name, float32: those of source and readers are replaced.
        kept: in which dtype a norm or a bias of the block is stored.

    Returns:
        The scale as it is, and parameters of the block that have changed, by name; they are replaced there too.
    """
    source, changed = block.get_submodule(at.source), {}
    own = {name: parameter.detach() for name, parameter in source.named_parameters(recurse=False)}
    dtypes = {name: kept(f"{at.source}.{name}") for name in own if name == "bias" or at.source not in weights}
    if at.source in weights:
        rows = at.rows(scale)
        weights[at.source] = weights[at.source] / rows[:, None]
    else:
        one = 1.0 if source.plus_one else 0.0
        before = own["weight"].float() + one
        divided = (before / scale - one).to(dtypes["weight"])
        after = divided.float() + one
        dead = (before == 0) | (after == 0)
        scale = rows = torch.where(dead, torch.ones_like(scale), before / after)
        changed["weight"] = torch.where(dead, own["weight"].to(dtypes["weight"]), divided)
    if "bias" in own:
        changed["bias"] = (own["bias"].float() / rows).to(dtypes["bias"])
    for name in at.readers:
        weights[name] = weights[name] * scale
    for name, tensor in changed.items():
        setattr(source, name, nn.Parameter(tensor.to(own[name].dtype), requires_grad=False))
    return scale, {f"{at.source}.{name}": tensor for name, tensor in changed.items()}
