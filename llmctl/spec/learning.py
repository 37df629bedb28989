"""Learning: what each layer learns under a method, and where gradients pass: what it keeps for the backward pass."""

from dataclasses import dataclass
from functools import lru_cache

from llmctl.spec.adapt import AdaptConfig
from llmctl.spec.model import ModelConfig
from llmctl.spec.sizes import crossed
from llmctl.spec.trained import trained_shapes

ALL = frozenset({"q", "k", "v", "out", "gate", "up", "down"})


@dataclass(frozen=True)
class Half:
    """What attention, cross-attention or the MLP of a layer learns.

    Attributes:
        own: matrices that are trained as they are, by their short names.
        low: those beside which one of low rank is.
        scaled: those with factors.
        narrow: a bottleneck follows the last of them.
        norm: the weights of its norms are trained.
        inner: something between its norm and its last matrix is trained.
        before: what enters it has a gradient.
        after: what leaves it has.
    """

    own: frozenset[str] = ALL
    low: frozenset[str] = frozenset()
    scaled: frozenset[str] = frozenset()
    narrow: bool = False
    norm: bool = True
    inner: bool = True
    before: bool = True
    after: bool = True

    @property
    def reading(self) -> frozenset[str]:
        """The matrices whose input is kept, for its product with a gradient."""
        return self.own | self.low


@dataclass(frozen=True)
class Layer:
    """What a layer learns.

    Attributes:
        attention, cross, mlp: its halves; without cross-attention `cross` means nothing.
        virtual: keys and values that stand before each row.
        gated: vectors that its queries look at beside the row.
    """

    attention: Half = Half()
    cross: Half = Half()
    mlp: Half = Half()
    virtual: int = 0
    gated: int = 0

    @property
    def after(self) -> bool:
        """Whether what leaves it has a gradient."""
        return self.attention.after or self.cross.after or self.mlp.after


@lru_cache
def learning(config: ModelConfig, tuning: AdaptConfig) -> dict[str, tuple[Layer, ...]]:
    """What each layer learns, by stack."""
    names, found, alive = trained_shapes(config, tuning), {}, False
    for stack, layers in config.stacks.items():
        source = alive if crossed(config, stack) else False
        start = ("encoder_embed.",) if config.kind == "encoder-decoder" and stack == "encoder" else ("embed.",)
        start += ("embed.tokens", "embed.norm") if stack == "encoder" else ()
        prompted = "prompt.vectors" in names and stack == next(iter(config.stacks))
        alive = prompted or any(name.startswith(start) for name in names)
        found[stack] = ()
        for number in range(layers):
            prefix = f"{stack}.layers.{number}."
            own = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
            layer, alive = _layer(own, alive, source, config.parallel, tuning)
            found[stack] += (layer,)
    return found


@lru_cache
def head_learns(config: ModelConfig, tuning: AdaptConfig) -> bool:
    """Whether the matrix that makes logits is trained as it is."""
    return ("embed.tokens.weight" if config.tie else "head.weight") in trained_shapes(config, tuning)


@lru_cache
def last_learns(config: ModelConfig, tuning: AdaptConfig) -> bool:
    """Whether the norm after the last layer is trained."""
    return any(name.startswith(f"{config.last_stack}.norm.") for name in trained_shapes(config, tuning))


def _layer(names: list[str], alive: bool, source: bool, parallel: bool, tuning: AdaptConfig) -> tuple[Layer, bool]:
    """A layer of which these are trained, and whether what leaves it has a gradient.

    Args:
        alive: what enters it has one.
        source: what its cross-attention reads has one.
        parallel: its halves read the same.
    """
    halves, before = {}, alive
    for half in ("attention", "cross_attention", "mlp"):
        own = [name for name in names if name.startswith((f"{half}.", f"{half}_norm.", f"{half}_out_norm."))]
        halves[half] = _half(half, own, before if parallel else alive, half == "cross_attention" and source)
        alive = alive or halves[half].after
    virtual = tuning.virtual_tokens * ("attention.prefix" in names)
    gated = tuning.virtual_tokens * ("attention.extra.gate" in names)
    return Layer(halves["attention"], halves["cross_attention"], halves["mlp"], virtual, gated), alive


def _half(half: str, names: list[str], alive: bool, source: bool) -> Half:
    def ending(end: str) -> frozenset[str]:
        found = (name.removeprefix(f"{half}.").removesuffix(end) for name in names if name.endswith(end))
        return frozenset(name for name in found if name in ALL)

    own, low, scaled = ending(".weight"), ending(".adapter.b"), ending(".adapter.factor")
    last = "down" if half == "mlp" else "out"
    after = (f"{half}.{last}.", f"{half}.extra.")
    ahead = [name for name in names if name.startswith(f"{half}.") and not name.startswith(after)]
    norm = any(name.startswith(f"{half}_norm.") for name in names)
    return Half(
        own=own,
        low=low,
        scaled=scaled,
        narrow=any(name.endswith(".adapter.up.bias") for name in names),
        norm=norm,
        inner=alive or source or bool(ahead) or norm,
        before=alive,
        after=alive or source or bool(names),
    )
